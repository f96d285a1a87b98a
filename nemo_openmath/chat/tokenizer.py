"""A model folder's tokenizer and chat template, without importing transformers.

What is a control token and what is text is decided by who wrote it. The chat template's own control tokens are ids.
What a message holds (a problem, a forum post, a candidate) is text through and through: a control token spelled there
becomes ordinary pieces of text and forges neither a turn nor an id. Likewise what a program printed. What a model
wrote is text, too, except the tags of our protocol (``<think>``, ``<tool_call>``), which are the model's to write. A
*rendered* message (role ``RENDERED``) is a whole prompt that somebody rendered before: all its control tokens are ids.

Control tokens are the special tokens, the tags of our protocol, and the added tokens that the template writes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nemo_openmath.chat.chat_template import ChatTemplate, load_chat_template, no_chat_template
from nemo_openmath.chat.model_files import read_object
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.tags import CODE_END, CODE_START, THINK_END, THINK_START
from nemo_openmath.core.tokenizer import RENDERED, Message, Part, Prompt

_TAGS = (CODE_START, CODE_END, THINK_START, THINK_END)
_OPENING = re.compile(re.escape(THINK_START) + r"\s*(?:" + re.escape(THINK_END) + r"\s*)?\Z")
_THOUGHT = re.compile(f"{re.escape(THINK_START)}|{re.escape(THINK_END)}")
_HEAD = 64  # characters of a prompt in which it is seen what a tokenizer puts around a text
_PRIVATE = range(0xF0000, 0xFFFFE)  # characters that stand for nothing


class ChatTokenizer:
    """Encodes text and prompts for one model.

    - ``end_of_turn``: id of the token that the template writes behind an assistant's turn.
    - ``ends``: texts of the tokens that end a text; ``end_ids``: their ids.
    - ``options``: those of the template, as JSON; empty where none are set.
    - ``fingerprint``: SHA-256 (first 16 hex digits) over tokenizer, template and options. Equal fingerprints mean that
      ids are exchangeable.
    """

    def __init__(
        self,
        folder: Path,
        backend: Tokenizer,
        chat: ChatTemplate | None,
        end_of_turn: int,
        pad: int,
        ends: Iterable[str] = (),
    ):
        self.folder = folder
        self.backend = backend
        self.chat = chat
        self.end_of_turn = end_of_turn
        self.pad = pad
        self.ends = tuple(dict.fromkeys([str(backend.id_to_token(end_of_turn)), *ends]))
        self.template = "" if chat is None else chat.source
        state = backend.to_str() + self.template
        if chat is not None and (used := {k: v for k, v in chat.tokens.items() if k in chat.source}):
            state += json.dumps(used, sort_keys=True)
        self.options = "" if chat is None or not chat.options else json.dumps(chat.options, sort_keys=True)
        state += self.options
        self.fingerprint = hashlib.sha256(state.encode()).hexdigest()[:16]
        controls = _control_tokens(backend, chat)
        self._controls = {False: _any_of(controls), True: _any_of(c for c in controls if c not in _TAGS)}
        self._control_ids = {backend.token_to_id(c) for c in controls}
        self.end_ids = frozenset(i for i in (end_of_turn, *map(backend.token_to_id, self.ends)) if i is not None)
        self._plain_backend: Tokenizer | None = None
        self._newline: list[int] | None = None

    @classmethod
    def load(cls, folder: str | Path, *, chat: bool = True) -> ChatTokenizer:
        """Read a Hugging Face model folder. Raises UserError naming the file that is missing or broken.

        ``chat``: refuse a folder without a chat template. Else such a folder still encodes and decodes, and whoever
        renders a prompt is refused.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                "no tokenizer.json", file=folder, remedy="give the folder of a Hugging Face model with a fast tokenizer"
            )
        try:
            backend = Tokenizer.from_file(str(path))
        except Exception as error:
            raise UserError(f"cannot read the tokenizer ({error})", file=path, remedy="copy it again") from error
        config = read_object(folder / "tokenizer_config.json")
        backend.no_padding()
        backend.no_truncation()
        template = load_chat_template(folder, config)
        if template is None and chat:
            raise no_chat_template(folder)
        eos = _content(config.get("eos_token")) or (template.tokens.get("eos_token") if template else None)
        written = {k: v for k, v in template.tokens.items() if k in template.reads} if template else {}
        _check_added(backend, config, written | ({"eos_token": eos} if eos else {}), path)
        end = _token_id(backend, _written_end(backend, template), "<|im_end|>", eos)
        if end is None:
            raise UserError("no end-of-turn token", file=path, remedy="set eos_token in tokenizer_config.json")
        pad = _token_id(backend, _content(config.get("pad_token")), "<|endoftext|>")
        ends = [name for name in (eos, "<|im_end|>", "<|endoftext|>") if _token_id(backend, name) is not None]
        return cls(folder, backend, template, end, end if pad is None else pad, [e for e in ends if e is not None])

    def with_options(self, options: Mapping[str, Any], all_read: bool = True) -> ChatTokenizer:
        """Return this tokenizer with a chat template that renders with ``options``, such as Qwen3's
        ``enable_thinking``. Raises UserError for one that the template does not read. Without ``all_read`` that is left
        out: a server may have another template."""
        if not options:
            return self
        if self.chat is None:
            raise no_chat_template(self.folder)
        if not all_read:
            options = {name: value for name, value in options.items() if name in self.chat.reads}
        chat = self.chat.with_options(options)
        return ChatTokenizer(self.folder, self.backend, chat, self.end_of_turn, self.pad, self.ends)

    @property
    def vocab_size(self) -> int:
        """Number of entries, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    # -- prompts ---------------------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """Return the prompt up to where the assistant's turn begins. Raises UserError where there is no template, or
        where it refuses the turns."""
        if [m.role for m in messages] == [RENDERED]:
            text = messages[0].content
            match = _OPENING.search(text)
            return Prompt(((text, False),), match[0] if match else "")
        rendered = whole = self._render(messages, True)
        if any(_THOUGHT.search(m.content) for m in messages):  # a tag at the end may be a message's
            rendered = self._render([Message(m.role, _THOUGHT.sub("x", m.content)) for m in messages], True)
        match = _OPENING.search(rendered)
        opening = match[0] if match else ""
        if not any(self._of(m).search(m.content) for m in messages):
            return Prompt(((whole, False),), opening)
        # Control tokens are put between two characters that occur in no message, and found again in the prompt.
        there = {ord(c) for m in messages for c in m.content if ord(c) in _PRIVATE}
        before, after = [chr(c) for c in _PRIVATE if c not in there][:2]
        marked = [Message(m.role, self._of(m).sub(rf"{before}\g<0>{after}", m.content)) for m in messages]
        between = re.compile(f"{before}({self._controls[False].pattern}){after}|[{before}{after}]")
        parts = between.split(self._render(marked, True))
        if self.chat is not None and "".join(parts) != whole:
            sign = next(match[0] for m in messages if (match := self._of(m).search(m.content)))
            raise UserError(
                f"the chat template computes with the texts of messages, and one holds {sign}",
                file=self.chat.file,
                remedy="leave that message out, or give a template that writes texts as they are",
            )
        return Prompt(tuple((text, i % 2 == 1) for i, text in enumerate(parts) if text), opening)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the text of the turns and, with ``add_generation_prompt``, of what opens the assistant's turn."""
        if [m.role for m in messages] == [RENDERED]:
            return messages[0].content
        return self._render(messages, add_generation_prompt)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of :meth:`prompt`: control tokens of the template are ids, those inside messages are
        text."""
        return self.encode_parts(self.prompt(messages).parts)

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        if self.chat is None:
            raise no_chat_template(self.folder)
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return self.chat.render(turns, add_generation_prompt=add_generation_prompt)

    def _of(self, message: Message) -> re.Pattern[str]:
        """Return the pattern of what is to be text in a message. In earlier turns of the assistant, the tags are its
        own."""
        return self._controls[message.role == "assistant"]

    def control_in(self, text: str) -> str | None:
        """Return the first control token that is spelled in a text, tags of our protocol aside."""
        control = self._controls[True].search(text)
        return control[0] if control else None

    def knows(self, rendered: str) -> bool:
        """Return whether the sign that a whole rendered prompt begins with is one of this model's."""
        sign = re.match(r"\s*(<[^>\s]*>|\[INST\])", rendered)
        if sign is None or (self.chat is not None and sign[1] in self.chat.literals):
            return True
        token = self.backend.get_added_tokens_decoder()
        return any(t.content == sign[1] for t in token.values())

    # -- text ------------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Return the token ids of text whose control tokens are meant. Nothing is added before or after."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_text(self, text: str, *, tags: bool = False) -> list[int]:
        """Return the token ids of text whose control tokens are text like all the rest. ``tags``: all but those of the
        protocol, which stay single ids where the vocabulary has them."""
        return self.encode_parts(self.parts(text, tags=tags))

    def parts(self, text: str, *, tags: bool = False) -> tuple[Part, ...]:
        """Cut ``text`` at the control tokens that are to be text in it."""
        controls, out, end = self._controls[tags], [], 0
        for control in controls.finditer(text):
            out += [(text[end : control.start()], False), (control[0], True)]
            end = control.end()
        return tuple(part for part in [*out, (text[end:], False)] if part[0]) or (("", False),)

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """Return the token ids of parts in a row."""
        if not parts:
            return []
        (first, literal), *others = parts
        ids = self._literal(first) if literal else self.encode(first)
        for text, literal in others:
            ids += self._inside(text, literal)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return :meth:`encode` of many texts, on all cores."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_whole(self, text: str) -> list[int]:
        """Return the token ids of a whole text as a model's own pipeline takes it, with the tokens that the tokenizer
        puts around a text. A text that brings its first token itself is not given a second one."""
        whole: list[int] = self.backend.encode(text).ids
        twice = len(whole) > 1 and whole[0] == whole[1] and self.encode(text)[:1] == whole[:1]
        return whole[1:] if twice else whole

    def without_first(self, text: str) -> str:
        """Return ``text`` without the first token that the tokenizer puts in front of every text by itself."""
        whole, bare = self.backend.encode("x").ids, self.encode("x")
        first = self.backend.id_to_token(whole[0]) if whole[:1] != bare[:1] else None
        return text.removeprefix(first) if first else text

    def as_sent(self, prompt: str) -> str | None:
        """Return the text of which a server with this tokenizer makes the ids of ``prompt``, though it puts tokens
        around every text by itself. None where there is no such text."""
        text = self.without_first(prompt)
        head = len(prompt) - len(text) + _HEAD
        return text if self.encode_whole(text[:_HEAD]) == self.encode(prompt[:head]) else None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def strip_end(self, text: str) -> tuple[str, bool]:
        """Return the text without the end-of-text tokens that it ends in, and whether there was one."""
        return strip_end(text, self.ends)

    def _inside(self, text: str, literal: bool) -> list[int]:
        """Encode a part behind another one. It is encoded behind a line break that is taken off again, for some
        tokenizers put a space before the first word of a text."""
        if self._newline is None:
            self._newline = self.encode("\n")
        encode = self._literal if literal else self.encode
        ids = encode("\n" + text)
        head = len(self._newline)
        return ids[head:] if ids[:head] == self._newline else encode(text)

    def _literal(self, text: str) -> list[int]:
        """Return the token ids of text in which no added token is recognised."""
        if self._plain_backend is None:
            state = json.loads(self.backend.to_str())
            state["added_tokens"] = []
            state["post_processor"] = None
            self._plain_backend = Tokenizer.from_str(json.dumps(state))
        ids: list[int] = self._plain_backend.encode(text, add_special_tokens=False).ids
        if self._control_ids.isdisjoint(ids) or len(text) < 2:
            return ids
        # The vocabulary itself has the token as a word: two halves of it have no such word.
        middle = len(text) // 2
        return self._literal(text[:middle]) + self._literal(text[middle:])


def strip_end(text: str, ends: Iterable[str]) -> tuple[str, bool]:
    """Return ``text`` without the ``ends``, and white space behind them, that it ends in; and whether there was one."""
    known = tuple(ends)
    stripped = False
    while (bare := text.rstrip()).endswith(known):
        end = max((e for e in known if bare.endswith(e)), key=len)
        text, stripped = bare[: -len(end)], True
    return text, stripped


def _control_tokens(backend: Tokenizer, chat: ChatTemplate | None) -> list[str]:
    """Return the texts of the control tokens, the longest first, so that none hides one that begins like it."""
    literals = "" if chat is None else chat.literals
    added = [t for t in backend.get_added_tokens_decoder().values() if t.content]
    controls = {
        t.content
        for t in added
        if t.special
        or t.content in _TAGS
        or (t.content in literals and not t.content.isspace() and _is_sign(t.content))
    }
    return sorted(controls, key=lambda text: (-len(text), text))


def _is_sign(text: str) -> bool:
    """Return whether an added token is a sign, as <tool_call> and [INST] are, and not words that a vocabulary holds
    whole."""
    return not any(c.isspace() for c in text)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


def _written_end(backend: Tokenizer, chat: ChatTemplate | None) -> str | None:
    """Return the special token that the template writes right behind an assistant's text; None where it writes none, or
    takes no such turn."""
    if chat is None:
        return None
    mark = "\uf8ff"
    try:
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
        text = chat.render(turns, add_generation_prompt=False)
    except UserError:
        return None
    behind = text.rpartition(mark)[2].lstrip() if mark in text else ""
    special = [t.content for t in backend.get_added_tokens_decoder().values() if t.special]
    return max((s for s in special if s and behind.startswith(s)), key=len, default=None)


def _check_added(backend: Tokenizer, config: dict[str, Any], named: Mapping[str, str], file: Path) -> None:
    """Raise UserError where tokenizer_config.json knows a token that tokenizer.json does not have as one.

    transformers adds such a token when it loads the folder, so its ids of the same text are others. ``named``: the
    tokens that matter, by name.
    """
    there = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
    listed = config.get("added_tokens_decoder")
    lists = [(name, config.get(name) or ()) for name in ("additional_special_tokens", "extra_special_tokens")]
    texts: list[tuple[str, str | None]] = [*named.items()]
    texts += [
        (name, _content(t))
        for name, listed_tokens in lists
        for t in (listed_tokens.values() if isinstance(listed_tokens, dict) else listed_tokens)
    ]
    wrong = [f"{name} {text}" for name, text in texts if text and text not in there]
    for number, token in listed.items() if isinstance(listed, dict) else ():
        if str(there.get(str(_content(token)))) != str(number):
            wrong.append(f"{_content(token)} (id {number})")
    if wrong:
        raise UserError(
            f"tokenizer_config.json names {wrong[0]}, which is not an added token here",
            file=file,
            remedy="load the folder with transformers' AutoTokenizer and save_pretrained it again",
        )


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _token_id(backend: Tokenizer, *names: str | None) -> int | None:
    for name in names:
        if name is not None and (number := backend.token_to_id(name)) is not None:
            return number
    return None

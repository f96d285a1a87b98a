"""A model folder's tokenizer and chat template, without importing transformers.

``tokenizer.json`` is read by the tokenizers library and ``chat_template`` rendered by sandboxed jinja2 exactly as
transformers does (a test compares the two); importing transformers costs seconds in every process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from nemo_openmath.errors import UserError
from nemo_openmath.transcripts.transcript import Message

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ChatTokenizer:
    """Encodes text and prompts for one model.

    ``fingerprint``: sha256 (first 16 hex digits) over tokenizer and template: equal means that ids are exchangeable.
    """

    def __init__(self, folder: Path, backend: Tokenizer, template: str, end_of_turn: int, pad: int):
        self.folder = folder
        self.backend = backend
        self.template = template
        self.end_of_turn = end_of_turn
        self.pad = pad
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        self._jinja = environment.from_string(template)
        state = backend.to_str() + template
        self.fingerprint = hashlib.sha256(state.encode()).hexdigest()[:16]

    @classmethod
    def load(cls, folder: str | Path) -> ChatTokenizer:
        """Read a Hugging Face model folder. Raises UserError naming the file that is missing or broken."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                "no tokenizer.json", file=folder, remedy="give the folder of a Hugging Face model with a fast tokenizer"
            )
        try:
            backend = Tokenizer.from_file(str(path))
            config = _read_json(folder / "tokenizer_config.json")
        except Exception as error:
            raise UserError(f"cannot read the tokenizer ({error})", file=path, remedy="copy it again") from error
        backend.no_padding()
        backend.no_truncation()
        template = config.get("chat_template")
        if (folder / "chat_template.jinja").is_file():
            template = (folder / "chat_template.jinja").read_text()
        if isinstance(template, list):
            template = next((t["template"] for t in template if t["name"] == "default"), None)
        end = _token_id(backend, "<|im_end|>", _content(config.get("eos_token")))
        if end is None:
            raise UserError("no end-of-turn token", file=path, remedy="set eos_token in tokenizer_config.json")
        pad = _token_id(backend, _content(config.get("pad_token")), "<|endoftext|>")
        return cls(folder, backend, template or _CHATML, end, end if pad is None else pad)

    @property
    def vocab_size(self) -> int:
        """Entries including added tokens."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Token ids of a piece of text; nothing is added before or after."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`encode` of many texts, on all cores."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt text up to where the assistant's turn begins."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return self._jinja.render(messages=turns, add_generation_prompt=True, bos_token="", tools=None)
        except TemplateError as error:
            raise UserError(f"the chat template failed ({error})", file=self.folder) from error

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of :meth:`render`."""
        return self.encode(self.render(messages))


def _raise(message: str) -> None:
    raise TemplateError(message)


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _token_id(backend: Tokenizer, *names: str | None) -> int | None:
    for name in names:
        if name is not None and (found := backend.token_to_id(name)) is not None:
            return found
    return None


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}

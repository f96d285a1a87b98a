"""Reading what servers of the OpenAI protocol answer, in the words and shapes that real ones use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.engine import Conversation, EngineError, Finish, Request, Usage
from nemo_openmath.core.tags import THINK_END, THINK_START
from nemo_openmath.inference.http.tool_calls import CallPart, add_calls, read_calls

Body = dict[str, Any]

# Why a text ended, in lower case. Whatever is not here ended it for a reason of the server's own: Finish.CUT.
_FINISH = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "stop_str"), Finish.STOP),
    **dict.fromkeys(("end_of_text", "end_of_turn", "complete"), Finish.STOP),
    **dict.fromkeys(("length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens"), Finish.LENGTH),
    **dict.fromkeys(("model_length", "model_context_window_exceeded", "context_length"), Finish.LENGTH),
    "time_limit": Finish.TIME,
}
CALLED = ("tool_calls", "function_call", "tool_use")  # it ended with a call of a tool
# The server gave up a request that it may finish another time.
_GIVEN_UP = ("abort", "error", "cancelled", "insufficient_system_resource")
_THINKING = ("reasoning_content", "reasoning", "thinking")
_SHOWN = 160  # characters of an answer that is none
_CHARS_A_TOKEN = 4  # of English prose and mathematics, roughly


@dataclass(slots=True)
class AnswerPart:
    """What one event of a stream says, or a whole answer, which is one part."""

    text: str = ""
    ids: tuple[int, ...] = ()
    finish: str | None = None
    """Why the text ended, in the server's word."""
    stop: str | None = None
    """The stop string that matched."""
    stop_id: int | None = None
    """The token that matched."""
    logprobs: tuple[float, ...] = ()
    usage: Body = field(default_factory=dict)
    """The counts of tokens, as the server gave them."""
    thinking: str = ""
    """What a reasoning parser of the server took out of the text."""
    thinking_field: str = ""
    """The message's field that held it, which is what the server reads it from, too."""
    calls: list[CallPart] = field(default_factory=list)
    """The calls of tools that the server took out of the text."""

    def add(self, part: AnswerPart) -> None:
        """Append the next part of the same answer."""
        self.text += part.text
        self.thinking += part.thinking
        self.ids += part.ids
        self.logprobs += part.logprobs
        self.finish = part.finish or self.finish
        self.thinking_field = part.thinking_field or self.thinking_field
        add_calls(self.calls, part.calls)
        self.stop = part.stop or self.stop
        self.stop_id = part.stop_id if part.stop_id is not None else self.stop_id
        self.usage = self.usage | part.usage

    @property
    def whole(self) -> str:
        """The model's text with its thinking where the model wrote it.

        Thinking behind which there is no text is left open: whether the model ended it is not known. A text that holds
        its thinking itself is not given it twice, and tags that a parser left around the thinking, or before the text,
        are not doubled.
        """
        bare = self.text.lstrip()
        closed = bare.startswith(THINK_END)  # the parser left the tag of what it took out
        if not self.thinking or bare.startswith(THINK_START) or (THINK_END in bare and not closed):
            return self.text
        text = (bare.removeprefix(THINK_END) if closed else self.text).lstrip("\n")
        thinking = self.thinking.lstrip("\n").removeprefix(THINK_START).lstrip("\n")
        if thinking.rstrip().endswith(THINK_END):
            thinking, closed = thinking.rstrip().removesuffix(THINK_END), True
        if not text.strip() and not closed:
            return f"{THINK_START}\n{thinking}"
        return f"{THINK_START}\n{thinking.rstrip()}\n{THINK_END}\n\n{text}"


def read_choice(choice: Body) -> AnswerPart:
    """Read one element of ``choices``, of an answer or of a stream's event.

    Raises EngineError where the server put an error into it, and ValueError where its content is not understood.
    """
    if error := choice.get("error"):
        raise EngineError(f"the server failed: {error_of({'error': error})[1]}", retryable=True)
    message = choice.get("message") or choice.get("delta")
    if message is None:
        message = {**choice, "content": choice.get("text")}
    text, thought = _content(message.get("content"))
    fields = ((key, "".join(_content(message.get(key)))) for key in _THINKING)
    thinking_field, thinking = ("", thought) if thought else next((f for f in fields if f[1]), ("", ""))
    text = text or _text(message.get("refusal"))
    stop = choice.get("stop_reason")
    if stop is None:
        stop = choice.get("matched_stop")  # SGLang's name of it
    ids = choice.get("token_ids") or ()
    if not all(type(number) is int and number >= 0 for number in ids):
        raise ValueError(f"ids of tokens were expected, not {ids!r:.80}")
    answer = AnswerPart(text, tuple(ids), choice.get("finish_reason"), thinking=thinking, thinking_field=thinking_field)
    answer.calls = read_calls(message)
    answer.stop = stop if isinstance(stop, str) else None
    answer.stop_id = stop if isinstance(stop, int) else None
    if logprobs := choice.get("logprobs"):
        values = logprobs.get("token_logprobs")
        if values is None:
            values = [t["logprob"] for t in logprobs.get("content") or ()]
        answer.logprobs = tuple(0.0 if p is None else float(p) for p in values)
    return answer


def check_whole(answer: Body) -> None:
    """Raise ValueError, with what was answered, where an answer that is no event of a stream holds no choice, or one
    that says nothing: an empty text that a server does not have is no answer."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        what = f"`choices` is {shown(choices)}" if "choices" in answer else "there are no `choices`"
        raise ValueError(f"{what}: {shown(answer)}")
    choice = next((c for c in choices if not isinstance(c, Mapping) or not c.get("index")), None)  # one was asked for
    if choice is None:
        raise ValueError(f"there is no choice with index 0: {shown(answer)}")
    if not isinstance(choice, Mapping):
        raise ValueError(f"a choice is no object: {shown(choice)}")
    message = choice.get("message")
    if choice.get("error") or isinstance(message, Mapping) or isinstance(choice.get("text"), str):
        return
    if message is not None or not choice.get("token_ids"):
        what = f"`message` is {shown(message)}" if "message" in choice else "a choice has neither `message` nor `text`"
        raise ValueError(f"{what}: {shown(choice)}")


def shown(value: Any) -> str:
    """Return the beginning of what a server answered, on one line."""
    text = " ".join(orjson.dumps(value, default=str).decode(errors="replace").split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _content(content: Any) -> tuple[str, str]:
    """The text and the thinking of a message's content: nothing, text, or a list of parts."""
    if not isinstance(content, list):
        return _text(content), ""
    text, thinking = "", ""
    for part in content:
        kind = "text" if isinstance(part, str) else part.get("type", "text")
        if kind in ("text", "output_text"):
            text += part if isinstance(part, str) else _text(part.get("text"))
        elif kind in ("thinking", "reasoning"):
            inner = part.get("thinking", part.get("reasoning", part.get("text")))
            thinking += _content(inner)[0]
        elif kind == "refusal":
            text += _text(part.get("refusal"))
        else:
            raise ValueError(f"a part of the content is of type {kind!r}")
    return text, thinking


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"text was expected, not {value!r:.80}")
    return value


def finish_of(reason: str | None) -> Finish:
    """Return why the text ended. Raises EngineError, retryable, where the server gave the request up or is silent."""
    if not reason:
        raise EngineError("the server does not say why its text ended (no finish_reason)", retryable=True)
    if not isinstance(reason, str):
        raise EngineError(f"the server's finish_reason is no word: {shown(reason)}", retryable=True)
    if reason.lower() in _GIVEN_UP:
        raise EngineError(f"the server ended the request early ({reason})", retryable=True)
    return _FINISH.get(reason.lower(), Finish.CUT)


def usage_of(
    counts: Mapping[str, Any], request: Request, text: str, ids: tuple[int, ...], tokenizer: ChatTokenizer | None
) -> Usage:
    """Return the server's ``counts`` of tokens. What it left out, and zeros for what is there, is counted from ids or
    text, and the whole is marked as estimated."""
    prompt, completion = _count(counts.get("prompt_tokens")) or None, _count(counts.get("completion_tokens"))
    completion = None if completion == 0 and (text or ids) else completion
    total, details = _count(counts.get("total_tokens")), counts.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    estimated = prompt is None or completion is None
    if completion is None and prompt is not None and total is not None and total >= prompt:
        completion = total - prompt
    if completion is None:
        completion = len(ids) or _tokens(text, tokenizer)
    if prompt is None:
        if isinstance(request.prompt, tuple):
            prompt = len(request.prompt)
        elif total is not None and total >= completion:
            prompt = total - completion
        else:
            prompt = _tokens(_text_of(request.prompt), tokenizer)
    return Usage(prompt, min(cached or 0, prompt), completion, estimated)


def _text_of(prompt: str | Conversation) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(turn.thinking + turn.content for turn in prompt.turns)


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _tokens(text: str, tokenizer: ChatTokenizer | None) -> int:
    return -(-len(text) // _CHARS_A_TOKEN) if tokenizer is None else len(tokenizer.encode(text))


_WORDS = ("message", "detail", "msg", "error_msg", "errors")
_ASKED_FOR = ("choices", "usage", "text", "data", "tokens")
_STATUS = (  # of errors that give no number
    ("rate_limit", 429),
    ("invalid_request", 400),
    ("authentication", 401),
    ("permission", 403),
    ("not_found", 404),
)


def error_of(body: Mapping[str, Any]) -> tuple[int, str]:
    """Return the HTTP status that an error in a body amounts to, and the server's own words, from whichever of the
    customary places they are in. An error without a number is a failure of the server: 500."""
    error = body.get("error") or body
    if not isinstance(error, Mapping):
        return 500, str(error)[:500]
    words = next((error[key] for key in _WORDS if error.get(key)), None)
    for value in (error.get("code"), error.get("status"), error.get("type")):
        if isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
            if 400 <= int(value) <= 599:
                return int(value), str(words or error)[:500]
        elif isinstance(value, str):
            for name, status in _STATUS:
                if name in value.lower():
                    return status, str(words or error)[:500]
    return 500, str(words or error)[:500]


def is_error(body: Mapping[str, Any]) -> bool:
    """Tell whether an answer of status 200 is an error: it says so, or it has words for people and nothing that was
    asked for."""
    says_so = bool(body.get("error")) or body.get("object") == "error"
    return says_so or (body.keys().isdisjoint(_ASKED_FOR) and any(body.get(key) for key in _WORDS))

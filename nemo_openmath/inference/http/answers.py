"""Reading what servers of the OpenAI protocol answer, in the words and shapes that real ones use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.engine import EngineError, Finish, Request, Usage
from nemo_openmath.core.tags import THINK_END, THINK_START

Body = dict[str, Any]

# Why a text ended, in lower case. Whatever is not here ended it for a reason of the server's own: Finish.CUT.
_FINISH = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "stop_str"), Finish.STOP),
    **dict.fromkeys(("end_of_text", "end_of_turn", "complete"), Finish.STOP),
    **dict.fromkeys(("length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens"), Finish.LENGTH),
    **dict.fromkeys(("model_length", "model_context_window_exceeded", "context_length"), Finish.LENGTH),
    "time_limit": Finish.TIME,
}
# The server gave up a request that it may finish another time.
_GIVEN_UP = ("abort", "error", "cancelled", "insufficient_system_resource")
_THINKING = ("reasoning_content", "reasoning", "thinking")
_CHARS_A_TOKEN = 4  # of English prose and mathematics, roughly


@dataclass(slots=True)
class AnswerPart:
    """What one answer, or one event of a stream, says. A whole answer is one piece. ``thinking``: what a reasoning
    parser of the server took out of ``text``; ``called``: it took out a call of a tool. ``usage``: as the server gave
    it."""

    text: str = ""
    ids: tuple[int, ...] = ()
    finish: str | None = None
    stop: str | None = None
    stop_id: int | None = None  # the token that matched
    logprobs: tuple[float, ...] = ()
    usage: Body = field(default_factory=dict)
    thinking: str = ""
    called: bool = False

    def add(self, other: AnswerPart) -> None:
        self.text += other.text
        self.thinking += other.thinking
        self.ids += other.ids
        self.logprobs += other.logprobs
        self.finish = other.finish or self.finish
        self.called = self.called or other.called
        self.stop = other.stop or self.stop
        self.stop_id = other.stop_id if other.stop_id is not None else self.stop_id
        self.usage = self.usage | other.usage

    @property
    def whole(self) -> str:
        """The model's text with its thinking where the model wrote it. Thinking behind which there is no text is left
        open: whether the model ended it is not known. A text that holds its thinking itself is not given it twice, and
        tags that a parser left around the thinking, or before the text, are not doubled."""
        bare = self.text.lstrip()
        left = bare.startswith(THINK_END)  # by the parser, of what it took out
        if not self.thinking or bare.startswith(THINK_START) or (THINK_END in bare and not left):
            return self.text
        text = (bare.removeprefix(THINK_END) if left else self.text).lstrip("\n")
        thinking = self.thinking.lstrip("\n").removeprefix(THINK_START).lstrip("\n")
        if thinking.rstrip().endswith(THINK_END):
            thinking, left = thinking.rstrip().removesuffix(THINK_END), True
        if not text.strip() and not left:
            return f"{THINK_START}\n{thinking}"
        return f"{THINK_START}\n{thinking.rstrip()}\n{THINK_END}\n\n{text}"


def read_choice(choice: Body) -> AnswerPart:
    """One element of ``choices``, of an answer or of a stream's event. Raises EngineError where the server put an error
    into it, ValueError where its content is nothing that is understood."""
    if error := choice.get("error"):
        raise EngineError(f"the server failed: {error_of({'error': error})[1]}", retryable=True)
    message = choice.get("message") or choice.get("delta")
    if message is None:
        message = {**choice, "content": choice.get("text")}
    text, thought = _content(message.get("content"))
    thinking = thought or next(("".join(said) for key in _THINKING if any(said := _content(message.get(key)))), "")
    text = text or _text(message.get("refusal"))
    stop = choice.get("stop_reason")
    if stop is None:
        stop = choice.get("matched_stop")  # SGLang's name of it
    ids = choice.get("token_ids") or ()
    if not all(type(number) is int and number >= 0 for number in ids):
        raise ValueError(f"ids of tokens were expected, not {ids!r:.80}")
    piece = AnswerPart(text, tuple(ids), choice.get("finish_reason"), thinking=thinking)
    piece.called = bool(message.get("tool_calls") or message.get("function_call"))
    piece.stop = stop if isinstance(stop, str) else None
    piece.stop_id = stop if isinstance(stop, int) else None
    if logprobs := choice.get("logprobs"):
        values = logprobs.get("token_logprobs")
        if values is None:
            values = [t["logprob"] for t in logprobs.get("content") or ()]
        piece.logprobs = tuple(0.0 if p is None else float(p) for p in values)
    return piece


def _content(content: Any) -> tuple[str, str]:
    """(text, thinking) of a message's content: nothing, text, or a list of parts."""
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
    """Why the text ended. Raises EngineError, retryable, where the server gave the request up or does not say."""
    if not reason or reason.lower() in _GIVEN_UP:
        raise EngineError(f"the server ended the request early ({reason})", retryable=True)
    return _FINISH.get(reason.lower(), Finish.CUT)


def usage_of(
    said: Mapping[str, Any], request: Request, text: str, ids: tuple[int, ...], tokenizer: ChatTokenizer | None
) -> Usage:
    """What the server counted. What it left out, and zeros for what is there, is counted from ids or text, and the
    whole is marked as estimated."""
    prompt, made = _count(said.get("prompt_tokens")) or None, _count(said.get("completion_tokens"))
    made = None if made == 0 and (text or ids) else made
    total, details = _count(said.get("total_tokens")), said.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else None
    estimated = prompt is None or made is None
    if made is None and prompt is not None and total is not None and total >= prompt:
        made = total - prompt
    if made is None:
        made = len(ids) or _tokens(text, tokenizer)
    if prompt is None:
        if not isinstance(request.prompt, str):
            prompt = len(request.prompt)
        elif total is not None and total >= made:
            prompt = total - made
        else:
            prompt = _tokens(request.prompt, tokenizer)
    return Usage(prompt, min(cached or 0, prompt), made, estimated)


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
    """(HTTP status that it amounts to, the server's own words) of an error in a body, in whichever of the customary
    places they are. An error without a number is a failure of the server: 500."""
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
    """Whether an answer of status 200 is an error: it says so, or it has words for people and nothing that was asked
    for."""
    said = bool(body.get("error")) or body.get("object") == "error"
    return said or (body.keys().isdisjoint(_ASKED_FOR) and any(body.get(key) for key in _WORDS))

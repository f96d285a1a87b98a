"""The OpenAI protocol as this project speaks it: request bodies in, answers out. No I/O here."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from nemo_openmath.core.engine import Completion, Finish, Sampling

# accepted for every client's sake; they change nothing that a completion contains
IGNORED = {"user", "metadata", "store", "service_tier"}
# fields whose only supported value is the neutral one: refused rather than ignored
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "ignore_eos": (False,),
    "skip_special_tokens": (False,),
    "top_logprobs": (0,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
}
FINISH_REASON = {
    Finish.STOP: "stop",
    Finish.LENGTH: "length",
    Finish.TIME: "time_limit",
    Finish.CANCELLED: "abort",
    Finish.CUT: "content_filter",
}


class BadRequest(Exception):
    """The request is wrong: the answer is a 400 whose body names the field."""

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed request body, chat or completion alike but for where the prompt comes from."""

    sampling: Sampling
    max_tokens: int | None  # None: whatever the context leaves
    n: int
    stream: bool
    include_usage: bool
    return_token_ids: bool
    conversation: str | None
    time_limit: float | None
    prompts: list[tuple[int, ...] | str] = field(default_factory=list)
    messages: list[dict[str, Any]] | None = None


class _Fields:
    """Takes typed fields out of a JSON object; what is left at the end was not understood."""

    def __init__(self, body: Any):
        if not isinstance(body, dict):
            raise BadRequest("the body must be a JSON object")
        self._left = {k: v for k, v in body.items() if v is not None and k not in IGNORED}

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = self._left.pop(name, default)
        if value is default:
            return value
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise BadRequest(f"{name} must be {' or '.join(k.__name__ for k in allowed)}, not {value!r:.80}", name)
        return value

    def number(self, name: str, default: float, low: float, high: float = float("inf")) -> float:
        value = float(self.take(name, (int, float), default))
        if not low <= value <= high:
            raise BadRequest(f"{name} must be between {low:g} and {high:g}, not {value:g}", name)
        return value

    def whole(self, name: str, default: int | None, low: int, high: int = 2**63) -> int | None:
        value: int | None = self.take(name, int, default)
        if value is not None and not low <= value <= high:
            raise BadRequest(f"{name} must be between {low} and {high}, not {value}", name)
        return value

    def finish(self) -> None:
        for name, value in self._left.items():
            if name not in NEUTRAL:
                raise BadRequest(f"unknown field {name!r}", name)
            if value not in NEUTRAL[name]:
                raise BadRequest(f"{name} is not supported here", name)


def parse_call(body: Any, model: str, chat: bool) -> Call:
    """Read the body of ``/v1/completions`` or ``/v1/chat/completions``. BadRequest names what is wrong."""
    f = _Fields(body)
    asked = f.take("model", str, model)
    if asked != model:
        raise BadRequest(f"model {asked!r} is not served here; this server has {model!r}", "model", 404)
    stop = f.take("stop", (str, list), [])
    stop = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(s, str) and s for s in stop):
        raise BadRequest("stop must be a string or a list of strings, none empty", "stop")
    max_tokens = f.whole("max_tokens", None if chat else 16, 1)
    if chat:
        max_tokens = f.whole("max_completion_tokens", max_tokens, 1)
    logprobs = f.take("logprobs", bool if chat else (int, bool), False)
    if not chat and not isinstance(logprobs, bool):
        if logprobs not in (0, 1):
            raise BadRequest("logprobs: only those of the sampled tokens are given (0 or 1)", "logprobs")
        logprobs = True
    seed = f.whole("seed", None, -(2**63))
    top_k = f.whole("top_k", 0, -1)
    n = f.whole("n", 1, 1, 1024)
    best_of = f.whole("best_of", n, 1)
    if best_of != n:
        raise BadRequest("best_of is not supported; use n", "best_of")
    stream_options = f.take("stream_options", dict, {})
    time_limit = f.number("time_limit", 0.0, 0.0)
    assert n is not None
    assert top_k is not None
    call = Call(
        sampling=Sampling(
            max_tokens=max_tokens or 1,
            temperature=f.number("temperature", 1.0, 0.0),
            top_p=f.number("top_p", 1.0, 1e-9, 1.0),
            top_k=max(0, top_k),
            min_p=f.number("min_p", 0.0, 0.0, 1.0),
            seed=secrets.randbits(63) if seed is None else seed,
            stop=tuple(stop),
            keep_stop=f.take("include_stop_str_in_output", bool, False),
            logprobs=logprobs,
        ),
        max_tokens=max_tokens,
        n=n,
        stream=f.take("stream", bool, False),
        include_usage=bool(stream_options.get("include_usage")),
        return_token_ids=f.take("return_token_ids", bool, False),
        conversation=f.take("conversation", str),
        time_limit=time_limit or None,
        prompts=[] if chat else _prompts(f.take("prompt", (str, list))),
        messages=_messages(f.take("messages", list)) if chat else None,
    )
    f.finish()
    return call


def _prompts(prompt: Any) -> list[tuple[int, ...] | str]:
    def is_ids(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)

    if isinstance(prompt, str):
        return [prompt]
    if is_ids(prompt):
        return [tuple(prompt)]
    if prompt and all(isinstance(p, str) for p in prompt):
        return list(prompt)
    if prompt and all(is_ids(p) for p in prompt):
        return [tuple(p) for p in prompt]
    raise BadRequest("prompt must be text, token ids, or a list of either", "prompt")


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not messages:
        raise BadRequest("messages must be a list of at least one message", "messages")
    clean = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"messages[{i}] must have a role and a content", "messages")
        content = message.get("content")
        if isinstance(content, list):
            if not all(
                isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content
            ):
                raise BadRequest(f"messages[{i}].content: only text parts are understood", "messages")
            content = "".join(p["text"] for p in content)
        if not isinstance(content, str):
            raise BadRequest(f"messages[{i}].content must be text", "messages")
        clean.append({**message, "content": content})
    return clean


def usage_body(completions: list[Completion]) -> dict[str, Any]:
    """Write the usage of the samples of one or several prompts, each with its own prompt tokens counted."""
    prompt = sum(c.usage.prompt_tokens for c in completions)
    completion = sum(c.usage.completion_tokens for c in completions)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(c.usage.cached_tokens for c in completions)},
    }


def envelope(kind: str, request_id: str, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """Put choices into an answer, or an event of a stream, of the kind ``kind``."""
    return {"id": request_id, "object": kind, "created": int(time.time()), "model": model, "choices": choices}


def error_body(message: str, kind: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Write an error as the protocol does. ``param``: the field that is wrong."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}

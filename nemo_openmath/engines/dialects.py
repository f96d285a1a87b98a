"""What each server wants to be told and how it answers.

=========  ====================  =============================  ===========================================
server     endpoint              token ids out                  the stop string that matched
=========  ====================  =============================  ===========================================
vllm       /v1/completions       return_token_ids               include_stop_str_in_output, stop_reason
openmath   /v1/completions       return_token_ids               include_stop_str_in_output, stop_reason
sglang     /generate             output_ids                     no_stop_trim, finish_reason.matched
trtllm     /v1/completions       detokenize=false               include_stop_str_in_output, stop_reason;
                                                                refuses unknown fields; no logprobs
openai     /v1/completions       none: text only                not told
=========  ====================  =============================  ===========================================

Any of them can be asked through /v1/chat/completions instead (``api="chat"``): then prompts are text, rendered by the
server, and no token ids can be continued.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nemo_openmath.engines.protocol import Capabilities, Completion, EngineError, Finish, InvalidRequest, Request, Usage
from nemo_openmath.engines.wire import FINISH
from nemo_openmath.transcripts.tokenizer import ChatTokenizer

Body = dict[str, Any]


@dataclass(slots=True)
class Piece:
    """What one answer, or one event of a stream, says. A whole answer is one piece."""

    text: str = ""
    ids: tuple[int, ...] = ()
    finish: str | None = None
    stop: str | None = None
    logprobs: tuple[float, ...] = ()
    usage: Usage | None = None

    def add(self, other: Piece) -> None:
        self.text += other.text
        self.ids += other.ids
        self.logprobs += other.logprobs
        self.finish = other.finish or self.finish
        self.stop = other.stop or self.stop
        self.usage = other.usage or self.usage


@dataclass(frozen=True, slots=True)
class Dialect:
    """One server's protocol. ``read(answer, so_far)``: the piece that an answer or a stream's event adds."""

    name: str
    path: str
    capabilities: Capabilities
    body: Callable[[Request, str, bool], Body]
    read: Callable[[Body, Piece], Piece]


def _common(request: Request, model: str, stream: bool) -> Body:
    s = request.sampling
    body: Body = {
        "model": model,
        "max_tokens": s.max_tokens,
        "temperature": s.temperature,
        "top_p": s.top_p,
    }
    if s.temperature > 0:  # a seed has no effect at 0, and costs a server a generator of its own
        body["seed"] = s.seed % 2**63
    if s.stop:
        body["stop"] = s.stop
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _truncation(request: Request) -> Body:
    s = request.sampling
    return ({"top_k": s.top_k} if s.top_k else {}) | ({"min_p": s.min_p} if s.min_p else {})


def _vllm(request: Request, model: str, stream: bool) -> Body:
    body = _common(request, model, stream) | _truncation(request)
    body |= {"prompt": request.prompt, "return_token_ids": True}
    if request.sampling.stop:
        body["include_stop_str_in_output"] = request.sampling.keep_stop
    if request.sampling.logprobs:
        body["logprobs"] = 1
    return body


def _openmath(request: Request, model: str, stream: bool) -> Body:
    body = _vllm(request, model, stream)
    return body if request.conversation is None else body | {"conversation": request.conversation}


def _trtllm(request: Request, model: str, stream: bool) -> Body:
    body = _common(request, model, stream) | _truncation(request) | {"prompt": request.prompt, "detokenize": False}
    if request.sampling.stop:
        body["include_stop_str_in_output"] = request.sampling.keep_stop
    return body


def _openai(request: Request, model: str, stream: bool) -> Body:
    if not isinstance(request.prompt, str):
        raise InvalidRequest("this server is asked in text: it returns no token ids")
    body = _common(request, model, stream) | {"prompt": request.prompt}
    return body | {"logprobs": 1} if request.sampling.logprobs else body


def _chat(request: Request, model: str, stream: bool) -> Body:
    if not isinstance(request.prompt, str):
        raise InvalidRequest("the chat endpoint takes text, not token ids")
    body = _common(request, model, stream) | {"messages": [{"role": "user", "content": request.prompt}]}
    return body | {"logprobs": True} if request.sampling.logprobs else body


def _sglang(request: Request, model: str, stream: bool) -> Body:
    s = request.sampling
    parameters = {
        "max_new_tokens": s.max_tokens,
        "temperature": s.temperature,
        "top_p": s.top_p,
        "sampling_seed": s.seed % 2**31,
        "stop": s.stop,
        "no_stop_trim": s.keep_stop,
    } | _truncation(request)
    prompt = {"text": request.prompt} if isinstance(request.prompt, str) else {"input_ids": request.prompt}
    return prompt | {"sampling_params": parameters, "stream": stream, "return_logprob": s.logprobs}


def _read_openai(answer: Body, so_far: Piece) -> Piece:
    piece = Piece()
    if usage := answer.get("usage"):
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        piece.usage = Usage(usage["prompt_tokens"], cached, usage.get("completion_tokens") or 0)
    for choice in answer["choices"][:1]:
        content = choice.get("message") or choice.get("delta")
        piece.text = (content.get("content") if content is not None else choice.get("text")) or ""
        piece.ids = tuple(choice.get("token_ids") or ())
        piece.finish = choice.get("finish_reason")
        stop = choice.get("stop_reason")
        piece.stop = stop if isinstance(stop, str) else None
        if logprobs := choice.get("logprobs"):
            values = logprobs.get("token_logprobs")
            if values is None:
                values = [t["logprob"] for t in logprobs.get("content") or ()]
            piece.logprobs = tuple(0.0 if p is None else float(p) for p in values)
    return piece


def _read_sglang(answer: Body, so_far: Piece) -> Piece:
    """Events carry all text and ids so far, unless the server runs with incremental output: tell by the counts."""
    meta = answer["meta_info"]
    text, ids = answer["text"], tuple(answer.get("output_ids") or ())
    logprobs = tuple(float(entry[0]) for entry in meta.get("output_token_logprobs") or ())
    if so_far.ids and len(ids) == meta["completion_tokens"]:
        text, ids, logprobs = text[len(so_far.text) :], ids[len(so_far.ids) :], logprobs[len(so_far.logprobs) :]
    reason = meta.get("finish_reason") or {}
    matched = reason.get("matched")
    usage = Usage(meta["prompt_tokens"], meta.get("cached_tokens") or 0, meta["completion_tokens"])
    return Piece(text, ids, reason.get("type"), matched if isinstance(matched, str) else None, logprobs, usage)


_IDS = Capabilities(
    token_ids=True, text_prompts=True, seeds=True, logprobs=True, keep_stop=True, cached_tokens=True, max_context=None
)
_TEXT = replace(_IDS, token_ids=False, keep_stop=False)
DIALECTS = {
    "vllm": Dialect("vllm", "/v1/completions", _IDS, _vllm, _read_openai),
    "openmath": Dialect("openmath", "/v1/completions", _IDS, _openmath, _read_openai),
    "sglang": Dialect("sglang", "/generate", _IDS, _sglang, _read_sglang),
    "trtllm": Dialect("trtllm", "/v1/completions", replace(_IDS, logprobs=False), _trtllm, _read_openai),
    "openai": Dialect("openai", "/v1/completions", _TEXT, _openai, _read_openai),
}
OWNERS = {"vllm": "vllm", "sglang": "sglang", "tensorrt_llm": "trtllm", "nemo-openmath": "openmath"}


def chat_dialect(kind: str) -> Dialect:
    return Dialect(kind, "/v1/chat/completions", replace(_TEXT, renders=True), _chat, _read_openai)


def to_completion(piece: Piece, request: Request, tokenizer: ChatTokenizer | None) -> Completion:
    """The finished completion, with the stop string as the request wants it.

    Raises EngineError where the server gave up the request.
    """
    if piece.finish in (None, "abort", "error"):
        raise EngineError(f"the server ended the request early ({piece.finish})", retryable=True)
    s = request.sampling
    text, ids = piece.text, piece.ids
    if ids and not text and tokenizer is not None:  # it was asked not to decode (trtllm)
        text = tokenizer.decode([i for i in ids if i != tokenizer.end_of_turn])
    stop = piece.stop if piece.stop in s.stop else None
    if stop is not None and s.keep_stop:
        at = text.find(stop)
        text = text + stop if at < 0 else text[: at + len(stop)]
        if at < 0 and ids and tokenizer is not None and stop not in tokenizer.decode(ids[-len(stop.encode()) - 2 :]):
            ids += tuple(tokenizer.encode(stop))  # the server took it off its ids too
    elif stop is not None:
        text = text.partition(stop)[0]
        while ids and tokenizer is not None and len(tokenizer.decode(ids[:-1])) >= len(text):
            ids = ids[:-1]
    usage = piece.usage or Usage(0 if isinstance(request.prompt, str) else len(request.prompt), 0, len(piece.ids))
    finish = FINISH.get(piece.finish or "", Finish.STOP)
    return Completion(text, ids, finish, stop, usage, piece.logprobs[: len(ids) or None] if s.logprobs else None)

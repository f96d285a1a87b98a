"""What each server wants to be told and how it answers.

=========  ================  ========================  ============================  ==============================
server     endpoint          token ids out             the stop string that matched  fields beyond OpenAI's
=========  ================  ========================  ============================  ==============================
vllm       /v1/completions   return_token_ids          stop_reason                   all below
openmath   /v1/completions   return_token_ids          stop_reason                   all below but stop_token_ids: it
                                                                                     stops at the model's own
sglang     /generate         output_ids                finish_reason.matched         all below
trtllm     /v1/completions   detokenize=false          stop_reason                   all below but logprobs and
                                                                                     skip_special_tokens; it refuses
                                                                                     fields that it does not know
openai     /v1/completions   none: text only           not told                      none: these are left to it, said
                                                                                     once, and refused where asked for
=========  ================  ========================  ============================  ==============================

Every request names ``temperature``, ``top_p``, ``presence_penalty``, ``frequency_penalty``, ``n``, ``max_tokens`` and,
where tokens are drawn, ``seed``; and of the fields beyond OpenAI's ``top_k``, ``min_p``, ``repetition_penalty``,
``stop_token_ids`` (where the tokenizer is known) and ``skip_special_tokens``. A server fills in what is left out from
the model's ``generation_config.json``, and the same model would be sampled in another way than it was asked for.

Any of them can be asked through /v1/chat/completions instead (``api="chat"``): then prompts are conversations, or a
text, which is a user's turn. The server renders them, and no token ids can be continued.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.engine import (
    Capabilities,
    Completion,
    Conversation,
    Finish,
    InvalidRequest,
    Request,
    ToolCall,
    Turn,
)
from nemo_openmath.inference.http.answers import (
    CALLED,
    AnswerPart,
    check_whole,
    finish_of,
    read_choice,
    shown,
    usage_of,
)
from nemo_openmath.inference.http.tool_calls import PYTHON, whole_calls

ServerKind = Literal["auto", "vllm", "sglang", "trtllm", "openmath", "openai"]
"""The servers that can be asked. ``auto``: ask the server what it is."""

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Takes:
    """Which sampling fields a server takes beyond those of OpenAI's protocol.

    Whatever a request leaves out, vLLM and SGLang take from the model's ``generation_config.json``. So every field that
    a server knows is always sent.
    """

    no_top_k: int | None = None
    """The server's word for "``top_k`` is off"; None: it refuses ``top_k``, ``min_p`` and ``repetition_penalty``."""
    stop_ids: bool = False
    """It takes ``stop_token_ids``."""
    special: bool = False
    """It takes ``skip_special_tokens``. It can be false where the text does not end in the end-of-turn token then."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """The fields that are left to the server's own defaults."""
        truncation = ("top_k", "min_p", "repetition_penalty") if self.no_top_k is None else ()
        return truncation if self.stop_ids or self.special else (*truncation, "stop_token_ids")


@dataclass(frozen=True, slots=True)
class Dialect:
    """One server's protocol."""

    name: ServerKind
    path: str
    capabilities: Capabilities
    takes: Takes
    make: Callable[[Request, str, bool, Body], Body]
    """(request, model, stream, sampling fields) -> body."""
    read: Callable[[Body, AnswerPart], AnswerPart]
    """(answer or event, answer so far) -> the part that it adds."""

    def read_whole(self, answer: Body) -> AnswerPart:
        """Return an answer that was not streamed. Raises ValueError, with what was answered, where it is none."""
        if self.path != "/generate":
            check_whole(answer)
        elif not (isinstance(answer.get("meta_info"), dict) and isinstance(answer.get("text"), str)):
            raise ValueError(f"there are no `text` and `meta_info`: {shown(answer)}")
        return self.read(answer, AnswerPart())

    def body(self, request: Request, model: str, stream: bool, ends: Sequence[int] = ()) -> Body:
        """Return the body to send. ``ends``: ids of the tokens that end a text, as far as they are known. Raises
        InvalidRequest for what this server cannot be asked."""
        if isinstance(request.prompt, Conversation) and not self.capabilities.conversations:
            raise InvalidRequest("conversations are for chat servers (api: chat)")
        return self.make(request, model, stream, _sampling(request, self, ends))


def _sampling(request: Request, dialect: Dialect, ends: Sequence[int]) -> Body:
    """Every sampling field of the request that the server takes, whatever its value."""
    s, takes = request.sampling, dialect.takes
    body: Body = {"temperature": s.temperature, "top_p": s.top_p, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    body["n"] = 1
    if takes.no_top_k is not None:
        body |= {"top_k": s.top_k or takes.no_top_k, "min_p": s.min_p, "repetition_penalty": 1.0}
    elif s.top_k or s.min_p:
        raise InvalidRequest(
            f"a server asked as {dialect.name!r} takes neither top_k nor min_p; name its kind (server: vllm, sglang, "
            "trtllm), or leave them out"
        )
    if takes.stop_ids and ends:
        body["stop_token_ids"] = list(ends)
    if takes.special:
        body["skip_special_tokens"] = False
    return body


def _common(request: Request, model: str, stream: bool, sampling: Body) -> Body:
    s = request.sampling
    body: Body = {"model": model, "max_tokens": s.max_tokens, **sampling}
    if s.temperature > 0:  # a seed has no effect at 0, and costs a server a generator of its own
        body["seed"] = s.seed % 2**63
    if s.stop:
        body["stop"] = s.stop
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _vllm(request: Request, model: str, stream: bool, sampling: Body) -> Body:
    """vLLM tells which stop string matched, and it is put back here: with ``include_stop_str_in_output`` the text would
    end in the end-of-turn token too."""
    body = _common(request, model, stream, sampling)
    body |= {"prompt": request.prompt, "return_token_ids": True, "include_stop_str_in_output": False}
    if request.sampling.logprobs:
        body["logprobs"] = 1
    return body


def _openmath(request: Request, model: str, stream: bool, sampling: Body) -> Body:
    body = _vllm(request, model, stream, sampling)
    body["include_stop_str_in_output"] = request.sampling.keep_stop
    return body if request.conversation is None else body | {"conversation": request.conversation}


def _trtllm(request: Request, model: str, stream: bool, sampling: Body) -> Body:
    body = _common(request, model, stream, sampling) | {"prompt": request.prompt, "detokenize": False}
    if request.sampling.stop:
        body["include_stop_str_in_output"] = request.sampling.keep_stop
    return body


def _openai(request: Request, model: str, stream: bool, sampling: Body) -> Body:
    if not isinstance(request.prompt, str):
        raise InvalidRequest("this server is asked in text: it returns no token ids")
    body = _common(request, model, stream, sampling) | {"prompt": request.prompt}
    return body | {"logprobs": 1} if request.sampling.logprobs else body


def _chat(kind: ServerKind, thinking: str, request: Request, model: str, stream: bool, sampling: Body) -> Body:
    prompt = request.prompt
    if isinstance(prompt, str):
        prompt = Conversation((Turn("user", prompt),))
    if not isinstance(prompt, Conversation):
        raise InvalidRequest("the chat endpoint takes conversations, not token ids")
    body = _common(request, model, stream, sampling)
    body["messages"] = [_message(turn, thinking) for turn in prompt.turns]
    if prompt.tools:
        body |= {"tools": [PYTHON], "tool_choice": "auto"}
    if prompt.turns[-1].role == "assistant":
        if kind not in _CONTINUING:
            raise InvalidRequest("this server cannot go on with the assistant's turn")
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body | {"logprobs": True} if request.sampling.logprobs else body


def _message(turn: Turn, thinking: str) -> Body:
    message: Body = {"role": turn.role, "content": turn.content}
    if turn.thinking:
        message[thinking] = turn.thinking
    if turn.calls and turn.role == "tool":
        message["tool_call_id"] = turn.calls[0].id
    elif turn.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.calls
        ]
    return message


def _sglang(request: Request, model: str, stream: bool, sampling: Body) -> Body:
    s = request.sampling
    parameters = {
        **sampling,
        "max_new_tokens": s.max_tokens,
        "sampling_seed": s.seed % 2**31,
        "stop": s.stop,
        "no_stop_trim": False,  # as with vLLM
    }
    prompt = {"text": request.prompt} if isinstance(request.prompt, str) else {"input_ids": request.prompt}
    return prompt | {"sampling_params": parameters, "stream": stream, "return_logprob": s.logprobs}


def _read_openai(answer: Body, so_far: AnswerPart) -> AnswerPart:
    """An event without a choice brings the usage, or nothing."""
    choices = [choice for choice in answer.get("choices") or () if not choice.get("index")]  # one was asked for
    part = read_choice(choices[0]) if choices else AnswerPart()
    usage = answer.get("usage")
    part.usage = usage if isinstance(usage, dict) else {}
    return part


def _read_sglang(answer: Body, so_far: AnswerPart) -> AnswerPart:
    """Events carry all text and ids so far, unless the server runs with incremental output: tell by the counts."""
    meta = answer["meta_info"]
    text, ids = answer["text"], tuple(answer.get("output_ids") or ())
    logprobs = tuple(float(entry[0]) for entry in meta.get("output_token_logprobs") or ())
    if so_far.ids and len(ids) == meta.get("completion_tokens"):
        text, ids, logprobs = text[len(so_far.text) :], ids[len(so_far.ids) :], logprobs[len(so_far.logprobs) :]
    reason = meta.get("finish_reason") or {}
    matched = reason.get("matched")
    usage = {key: meta.get(key) for key in ("prompt_tokens", "completion_tokens")}
    usage["prompt_tokens_details"] = {"cached_tokens": meta.get("cached_tokens")}
    return AnswerPart(
        text,
        ids,
        reason.get("type"),
        matched if isinstance(matched, str) else None,
        matched if isinstance(matched, int) else None,
        logprobs,
        usage,
    )


_IDS = Capabilities(
    token_ids=True, text_prompts=True, seeds=True, logprobs=True, keep_stop=True, cached_tokens=True, max_context=None
)
_TEXT = replace(_IDS, token_ids=False, keep_stop=False)
_TAKES: dict[ServerKind, Takes] = {
    "vllm": Takes(no_top_k=-1, stop_ids=True, special=True),
    "openmath": Takes(no_top_k=0, special=True),  # always stops at the model's end-of-turn tokens
    "sglang": Takes(no_top_k=-1, stop_ids=True, special=True),
    "trtllm": Takes(no_top_k=0, stop_ids=True),
    "openai": Takes(),
}
DIALECTS: dict[ServerKind, Dialect] = {
    "vllm": Dialect("vllm", "/v1/completions", _IDS, _TAKES["vllm"], _vllm, _read_openai),
    "openmath": Dialect("openmath", "/v1/completions", _IDS, _TAKES["openmath"], _openmath, _read_openai),
    "sglang": Dialect("sglang", "/generate", _IDS, _TAKES["sglang"], _sglang, _read_sglang),
    "trtllm": Dialect(
        "trtllm", "/v1/completions", replace(_IDS, logprobs=False), _TAKES["trtllm"], _trtllm, _read_openai
    ),
    "openai": Dialect("openai", "/v1/completions", _TEXT, _TAKES["openai"], _openai, _read_openai),
}
_CONTINUING = ("vllm", "sglang")  # the servers that can go on with the assistant's turn
OWNERS: dict[str, ServerKind] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "tensorrt_llm": "trtllm",
    "nemo-openmath": "openmath",
}


def chat_dialect(kind: ServerKind, thinking: str = "reasoning_content") -> Dialect:
    """Return the dialect of a server that is asked through ``/v1/chat/completions``. ``thinking``: the field of a
    message in which it takes the assistant's reasoning back."""
    able = replace(_TEXT, conversations=True, continues=kind in _CONTINUING, keep_stop=kind != "openai")
    return Dialect(kind, "/v1/chat/completions", able, _TAKES[kind], partial(_chat, kind, thinking), _read_openai)


def to_completion(answer: AnswerPart, request: Request, tokenizer: ChatTokenizer | None) -> Completion:
    """Return the finished completion, with the stop string as the request wants it. Raises EngineError where the server
    gave up the request."""
    finish, prompt = finish_of(answer.finish), request.prompt
    calls: tuple[ToolCall, ...] = ()
    if isinstance(prompt, Conversation) and prompt.tools:
        calls = whole_calls(answer.calls, len(prompt.turns))
        if calls and (answer.finish or "").lower() in CALLED:
            finish = Finish.STOP
    elif answer.calls and finish is Finish.STOP:
        finish = Finish.CUT  # a part of the text was taken out
    s = request.sampling
    text, ids = answer.whole, answer.ids
    if ids and not text and tokenizer is not None:  # it was asked not to decode (trtllm)
        text = tokenizer.decode(ids)
    stop = answer.stop if answer.stop in s.stop else None
    if stop is not None and s.keep_stop:
        at = text.find(stop)
        text = text + stop if at < 0 else text[: at + len(stop)]
        if at < 0 and ids and tokenizer is not None and stop not in tokenizer.decode(ids[-len(stop.encode()) - 2 :]):
            ids += tuple(tokenizer.encode(stop))  # the server took it off its ids too
    elif stop is not None:
        text = text.partition(stop)[0]
        while ids and tokenizer is not None and len(tokenizer.decode(ids[:-1])) >= len(text):
            ids = ids[:-1]
    elif finish is Finish.STOP and tokenizer is not None:
        text, _ = tokenizer.strip_end(text)
        if ids and answer.stop_id is not None and ids[-1] != answer.stop_id:
            ids += (answer.stop_id,)  # likewise
    usage = usage_of(answer.usage, request, text, ids, tokenizer)
    logprobs = answer.logprobs[: len(ids) or None] if s.logprobs else None
    return Completion(text, ids, finish, stop, usage, logprobs, answer.thinking, calls)

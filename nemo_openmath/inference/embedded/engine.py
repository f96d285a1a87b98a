"""The embedded engine: a Hugging Face model generating inside this process, as an :class:`Engine`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.clock import Clock
from nemo_openmath.core.engine import (
    Capabilities,
    Chunk,
    Completion,
    ContextOverflow,
    Conversation,
    EngineError,
    InvalidRequest,
    Request,
)
from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.embedded.batch import ContinuousBatch
from nemo_openmath.inference.embedded.compiled import compile_decoder
from nemo_openmath.inference.embedded.decoder import Decoder
from nemo_openmath.inference.embedded.drafters import draft_source, memory_of
from nemo_openmath.inference.embedded.memory import SLOTS, MemoryPlan, Need, address_space, plan_memory
from nemo_openmath.inference.embedded.proposers import DraftSource
from nemo_openmath.inference.embedded.requests import EngineRequest, OnDone, Statistics
from nemo_openmath.inference.embedded.scheduler import Scheduler
from nemo_openmath.inference.embedded.text import Detokenizer, StopTable, TextStream
from nemo_openmath.inference.embedded.torch_decoder import TorchDecoder
from nemo_openmath.inference.embedded.weights import load_weights
from nemo_openmath.inference.free_memory import Free, free_memory, show
from nemo_openmath.inference.open import NONE, check_drafter
from nemo_openmath.models.devices import check_device, use_steady_attention
from nemo_openmath.models.stop_tokens import end_ids

log = logging.getLogger(__name__)

HOTTEST = 1e6  # where every distribution is flat; beyond it float32 ends
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class EmbeddedEngine:
    """Loads Qwen2, Qwen3 and Llama directories and decodes with continuous batching on the CPU or one GPU.

    In float32 on the CPU the greedy output is that of transformers' ``generate``, and a seeded request gives the same
    tokens alone and in any batch. With a C compiler this holds at any ``slots`` and ``threads`` and from any cached
    prefix, to the last bit (compiled.py); without one, at the same ``slots`` and ``threads``. No promise is made for
    other types.
    """

    def __init__(
        self,
        name: str,
        tokenizer: ChatTokenizer,
        scheduler: Scheduler,
        detokenizer: Detokenizer,
        *,
        vocab: int,
        max_context: int,
        memory: str,
        guesses: str = NONE,
        deterministic: bool = False,
    ):
        self._name, self.tokenizer, self._scheduler = name, tokenizer, scheduler
        self._detokenizer, self._vocab = detokenizer, vocab
        self.memory = memory
        """Slots, context and memory, in one line."""
        self.guesses = guesses
        """What guesses tokens: ``none``, ``ngram``, or a drafter's folder."""
        self._capabilities = Capabilities(
            token_ids=True,
            text_prompts=True,
            seeds=True,
            logprobs=True,
            keep_stop=True,
            cached_tokens=True,
            max_context=max_context,
            deterministic=deterministic,
        )
        self._closed = False

    @classmethod
    def load(
        cls,
        model_dir: str | Path,
        *,
        slots: int | None = None,
        max_context: int | None = None,
        cache_mib: int | None = None,
        threads: int | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        prefix_cache_bytes: int = 1 << 30,
        drafter: str | Path | DraftSource | None = None,
        name: str | None = None,
        clock: Clock | None = None,
    ) -> EmbeddedEngine:
        """Load a model directory and start its decoding thread.

        - ``slots``: requests decoded at once, at most; more wait in line.
        - ``max_context``: tokens of prompt and completion.
        - ``cache_mib``: MiB of memory for keys and values.
        - ``threads``: of each operation; default: torch's.
        - ``prefix_cache_bytes``: memory, at most, for prefixes of requests that run no more.
        - ``drafter``: what guesses tokens that the model then verifies (drafters.py): ``ngram``, ``none``, or a folder;
          default: ``ngram`` for compiled models of 32 MiB and more, else ``none``.
        - ``clock``: of time limits.

        Slots, context and memory that are not given are chosen from what is free (memory.py). Raises UserError for a
        model that it cannot compute, and where the model or what is asked for does not fit.
        """
        if dtype not in _DTYPES:
            raise UserError(f"dtype {dtype!r} is unknown", remedy=f"use one of {', '.join(_DTYPES)}")
        check_device(device)
        use_steady_attention(device)
        drafter_bytes = memory_of(drafter)
        plan = _plan(Path(model_dir), dtype, device, slots, max_context, cache_mib, prefix_cache_bytes, drafter_bytes)
        if not isinstance(drafter, DraftSource):
            check_drafter(drafter, Path(model_dir))
        threads = threads or torch.get_num_threads()
        tokenizer = ChatTokenizer.load(model_dir, chat=False)
        slots, tight = plan.slots, plan.cache_tokens < plan.slots * plan.max_context
        try:
            with torch.inference_mode():
                weights = load_weights(
                    model_dir, max_context=plan.max_context or max_context, dtype=_DTYPES[dtype], device=device
                )
                decoder: Decoder = compile_decoder(weights, slots, threads, tight) or TorchDecoder(
                    weights, slots, tight
                )
                drafts = draft_source(drafter, decoder, weights)
            del weights
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise UserError(
                f"out of memory while {model_dir} was loaded ({show(_free(device).available)} is free now)",
                remedy="use a smaller model or a type with fewer bytes (dtype), or free memory",
            ) from error
        detokenizer = Detokenizer(tokenizer, end_ids(tokenizer))
        stops = StopTable(tokenizer, decoder.vocab, detokenizer)
        batch = ContinuousBatch(
            decoder, detokenizer, stops, slots, plan.prefix_bytes, plan.cache_tokens or None, drafts
        )
        return cls(
            name or Path(model_dir).resolve().name,
            tokenizer,
            Scheduler(batch, threads, clock),
            detokenizer,
            vocab=decoder.vocab,
            max_context=decoder.max_context,
            memory=plan.summary,
            guesses=NONE if drafts is None else drafts.name,
            deterministic=dtype == "float32" and device == "cpu",
        )

    @property
    def model(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def statistics(self) -> Statistics:
        """Totals since the start; written by the decoding thread, safe to read at any time."""
        return self._scheduler.statistics

    @property
    def alive(self) -> bool:
        """False after ``close``, or when the decoding thread failed."""
        return self._scheduler.alive

    async def complete(self, request: Request) -> Completion:
        """Return the finished completion. Cancelling the task frees the slot.

        Raises InvalidRequest for a request that cannot be done, EngineError where the engine is closed or has failed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Completion] = loop.create_future()
        pending = self._checked(request, lambda result: _from_thread(loop, _settle, future, result))
        self._submit(pending)
        try:
            return await future
        except asyncio.CancelledError:
            self._scheduler.cancel(pending)
            raise

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the completion token by token. Closing the iterator frees the slot."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[list[int], list[float]] | Completion | BaseException] = asyncio.Queue()
        pending = self._checked(request, lambda result: _from_thread(loop, events.put_nowait, result))
        pending.on_tokens = lambda ids, logprobs: _from_thread(loop, events.put_nowait, (ids, logprobs))
        text = TextStream(self._detokenizer, pending.prompt.tolist(), request.sampling.stop)
        self._submit(pending)
        yielded = 0  # tokens
        try:
            while isinstance(event := await events.get(), tuple):
                ids, logprobs = event
                yielded += len(ids)
                yield Chunk(text.add(ids), tuple(ids), logprobs=tuple(logprobs))
            pending.cancelled = True  # it has ended: nothing to cancel any more
            if isinstance(event, BaseException):
                raise EngineError(f"the engine failed: {event}", retryable=False) from event
            yield Chunk(text.remainder(event.text), event.token_ids[yielded:], event, (event.logprobs or ())[yielded:])
        finally:
            if not pending.cancelled:
                self._scheduler.cancel(pending)

    async def close(self) -> None:
        """End pending requests as cancelled and give the memory back."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._scheduler.close)
            if line := self.statistics.draft_line():
                log.info("%s", line)

    def _checked(self, request: Request, on_done: OnDone) -> EngineRequest:
        """The request as the scheduler takes it. Raises InvalidRequest for what it cannot do."""
        prompt = request.prompt
        if isinstance(prompt, Conversation):
            raise InvalidRequest("conversations are for chat servers; this engine takes token ids")
        ids = self.tokenizer.encode_whole(prompt) if isinstance(prompt, str) else prompt
        vocab = self._vocab
        foreign = InvalidRequest(f"the prompt has token ids outside 0..{vocab - 1}")
        try:
            tokens = np.asarray(ids, np.int32)
        except OverflowError:
            raise foreign from None
        if not len(tokens):
            raise InvalidRequest("the prompt is empty")
        limit = self._capabilities.max_context
        assert limit is not None
        if len(tokens) >= limit:
            raise ContextOverflow(len(tokens), limit)
        if tokens.min() < 0 or tokens.max() >= vocab:
            raise foreign
        _check(request)
        deadline = float("inf") if request.time_limit is None else self._scheduler.clock.now() + request.time_limit
        return EngineRequest(tokens, request.sampling, on_done, conversation=request.conversation, deadline=deadline)

    def _submit(self, pending: EngineRequest) -> None:
        if self._closed:
            raise EngineError("the engine is closed", retryable=False)
        try:
            self._scheduler.submit(pending)
        except RuntimeError as error:
            raise EngineError(str(error), retryable=False) from error


def _free(device: str) -> Free:
    if torch.device(device).type == "cuda":
        return Free(torch.cuda.mem_get_info(device)[0], "of the GPU's memory")
    return free_memory()


def _plan(
    folder: Path,
    dtype: str,
    device: str,
    slots: int | None,
    max_context: int | None,
    cache_mib: int | None,
    prefix_bytes: int,
    drafter_bytes: int,
) -> MemoryPlan:
    on_cpu = torch.device(device).type == "cpu"
    compiled = on_cpu and dtype == "float32"
    need = Need.of(folder, _DTYPES[dtype].itemsize, compiled=compiled, on_gpu=not on_cpu, slots=slots or SLOTS)
    if not (folder / "config.json").is_file():
        raise UserError("no model here (config.json is missing)", file=folder, remedy="name a Hugging Face directory")
    if need is None:  # the reader of the weights will say what is wrong with the configuration
        return MemoryPlan(slots or SLOTS, 0, 0, prefix_bytes, "")
    need = replace(need, resident=need.resident + drafter_bytes, loading=need.loading + 2 * drafter_bytes)
    free, space = _free(device), address_space()
    paged = on_cpu and space > 2 * (slots or SLOTS) * (max_context or need.limit) * need.token + need.loading
    if on_cpu and space < free.available:
        free = Free(space, "of the address space (ulimit -v)")
    return plan_memory(
        need,
        free,
        slots=slots,
        max_context=max_context,
        cache_mib=cache_mib,
        prefix_mib=prefix_bytes >> 20,
        paged=paged,
    )


def _check(request: Request) -> None:
    s = request.sampling
    for good, problem in (
        (s.max_tokens >= 1, f"max_tokens must be at least 1, not {s.max_tokens}"),
        (0 <= s.temperature <= HOTTEST, f"temperature must be from 0 to {HOTTEST:g}, not {s.temperature}"),
        (0 < s.top_p <= 1, f"top_p must be in (0, 1], not {s.top_p}"),
        (s.top_k >= 0, f"top_k must not be negative: {s.top_k}"),
        (0 <= s.min_p <= 1, f"min_p must be in [0, 1], not {s.min_p}"),
        (all(s.stop), "a stop string is empty"),
    ):
        if not good:
            raise InvalidRequest(problem)


def _settle(future: asyncio.Future[Completion], result: Completion | BaseException) -> None:
    if future.done():  # cancelled by its task
        return
    if isinstance(result, BaseException):
        error = EngineError(f"the engine failed: {result!r}", retryable=False)
        error.__cause__ = result
        future.set_exception(error)
    else:
        future.set_result(result)


def _from_thread(loop: asyncio.AbstractEventLoop, call: Any, *args: Any) -> None:
    """Run ``call`` in the event loop; an event loop that is gone has nobody to tell."""
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise

"""How much memory an embedded engine may take: what is free on this machine, what the model needs, and what follows
for the number of slots, the context and the keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.free_memory import Free, lines_of, show
from nemo_openmath.models.hf_config import describe

PREFILL_TOKENS = 2048  # of a turn: bounds how long running requests wait for new prompts
SLOTS = 64  # where nothing else is asked for
LEAST_CONTEXT = 1024  # tokens: a shorter one is never chosen, only obeyed
RESERVE, RESERVED_SHARE = 256 << 20, 0.1  # bytes, and share of what is free, that is left to others
_FEW_SLOTS, _GOOD_CONTEXT = 4, 8192  # where every slot takes its memory at once


def address_space() -> int:
    """Bytes of address space that this process may still reserve."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    left = 1 << 62
    if limit != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        left = max(0, limit - pages * resource.getpagesize())
    if lines_of(Path("/proc/sys/vm/overcommit_memory"))[:1] == ["2"]:  # what is reserved counts as taken
        table = {name: int(rest.split()[0]) << 10 for name, _, rest in map(_part, lines_of(Path("/proc/meminfo")))}
        left = min(left, max(0, table["CommitLimit"] - table["Committed_AS"]))
    return left


def _part(line: str) -> tuple[str, str, str]:
    return line.partition(":")


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes, in bytes. ``resident``: weights while it runs; ``loading``: the most while it is loaded;
    ``token``: keys and values of one token; ``working``: what computing takes. ``limit``: its positions."""

    model: str
    resident: int
    loading: int
    token: int
    working: int
    limit: int

    @classmethod
    def of(cls, folder: Path, itemsize: int, *, compiled: bool, slots: int = SLOTS) -> Need | None:
        """Read from ``config.json``; None where that says too little: the reader of weights will say what is wrong.

        ``compiled``: the weights are packed once more while they are loaded (compiled.py)."""
        try:
            model = describe(folder)
        except UserError:
            return None
        hidden, layers, inner = model.hidden_size, model.num_hidden_layers, model.intermediate_size
        heads, vocab, limit = model.num_attention_heads, model.vocab_size, model.max_position_embeddings
        kv_heads, head_dim = model.num_key_value_heads, model.head_dim
        width = (heads + 2 * kv_heads) * head_dim
        body = layers * (hidden * width + heads * head_dim * hidden + 3 * hidden * inner)
        table = vocab * hidden
        tables = 1 if model.tie_word_embeddings else 2
        in_torch = (body + tables * table) * itemsize
        resident = (body + 2 * table) * itemsize if compiled else in_torch
        loading = in_torch + (body + table) * itemsize if compiled else in_torch + 4 * tables * table
        working = PREFILL_TOKENS * (4 * hidden + width + 3 * inner) * itemsize + 3 * slots * vocab * 4
        return cls(str(folder), resident, loading, 2 * layers * kv_heads * head_dim * itemsize, working, limit)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How an engine uses its memory."""

    slots: int
    max_context: int
    """Tokens of prompt and completion of a request."""
    cache_tokens: int
    """Tokens of keys and values that all running requests may hold together."""
    prefix_bytes: int
    summary: str
    """All of it in one line."""


def plan_memory(
    need: Need,
    free: Free,
    *,
    slots: int | None = None,
    max_context: int | None = None,
    cache_mib: int | None = None,
    prefix_mib: int = 1024,
    paged: bool = True,
) -> MemoryPlan:
    """Choose what is not given, so that all fits into what is free. ``paged``: keys and values take memory as they are
    written, so that requests share it as they need it; else each slot takes its whole context at once.

    Raises UserError, with the numbers, where the model or what was asked for does not fit.
    """
    for name, value in (("slots", slots), ("max_context", max_context), ("cache_mib", cache_mib)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}", remedy="write 1 or more")
    if max_context is not None and max_context > need.limit:
        raise UserError(
            f"max_context {max_context} exceeds the model's {need.limit} positions",
            file=Path(need.model) / "config.json",
            remedy=f"use max_context <= {need.limit}",
        )
    reserve = max(RESERVE, int(RESERVED_SHARE * free.available))
    here = f"{show(free.available)} {free.where} is free"
    weights = f"the weights take {show(need.resident)}"
    if need.loading != need.resident:
        weights += f" ({show(need.loading)} while they are loaded)"
    room = free.available - need.resident - need.working - reserve
    if need.loading + reserve > free.available or room < need.token * min(need.limit, LEAST_CONTEXT):
        raise UserError(
            f"{need.model} does not fit: {weights}, {show(reserve)} stays free for others, and {here}",
            remedy="use a smaller model, a type with fewer bytes (dtype), or a machine with more memory",
        )
    left = f"{show(room)} is left for keys and values ({here}, {weights}, {show(reserve)} stays free for others)"
    if cache_mib is not None and (cache_mib << 20) > room:
        raise UserError(f"cache_mib {cache_mib} ({show(cache_mib << 20)}) does not fit: {left}", remedy="use less")
    if max_context is not None and max_context * need.token > (room if cache_mib is None else cache_mib << 20):
        one = f"one request of {max_context:,} tokens needs {show(max_context * need.token)} of keys and values"
        limit = left if cache_mib is None else f"cache_mib allows {show(cache_mib << 20)}"
        raise UserError(f"max_context {max_context} does not fit: {one}, and {limit}", remedy="use a smaller one")
    prefix = min(prefix_mib << 20, room // 4)
    if cache_mib is not None:
        budget, prefix = cache_mib << 20, min(prefix, room - (cache_mib << 20))
    else:
        prefix = min(prefix, room - (max_context or 0) * need.token)
        budget = room - prefix
    tokens = budget // need.token
    wanted = slots or SLOTS
    if paged:
        context = max_context or min(need.limit, tokens)
    else:
        context = max_context or min(need.limit, max(tokens // (slots or _FEW_SLOTS), min(tokens, _GOOD_CONTEXT)))
        if slots is not None and slots * context > tokens:
            if max_context is None:
                context = max(1, tokens // slots)
            if slots * context > tokens or context < min(need.limit, LEAST_CONTEXT):
                context = max_context or min(need.limit, LEAST_CONTEXT)
                raise UserError(
                    f"slots {slots} x max_context {context} does not fit: it needs "
                    f"{show(slots * context * need.token)} of keys and values, and {left}",
                    remedy="use fewer slots or a smaller max_context",
                )
        wanted = slots or max(1, min(SLOTS, tokens // context))
    tokens = min(tokens, wanted * context)
    summary = f"{wanted} slots x {context:,} tokens; "
    if tokens < wanted * context:
        summary += f"{tokens:,} tokens of all requests together, {tokens // context} of full length; others wait; "
    summary += f"keys and values up to {show(tokens * need.token)} of {show(free.available)} free"
    summary += f", weights {show(need.resident)}, prefixes up to {show(prefix)}"
    if max_context is None and context < need.limit:
        summary += f"; the model's {need.limit:,} tokens do not fit"
    return MemoryPlan(wanted, context, tokens, prefix, summary)

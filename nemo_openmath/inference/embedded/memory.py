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
RESERVE, RESERVED_SHARE = 256 << 20, 0.1  # bytes, and share of what is free, that stays free for others
_FEW_SLOTS, _GOOD_CONTEXT = 4, 8192  # where every slot takes its memory at once


def address_space() -> int:
    """Return the bytes of address space that this process may still reserve."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    space = 1 << 62
    if limit != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        space = max(0, limit - pages * resource.getpagesize())
    if lines_of(Path("/proc/sys/vm/overcommit_memory"))[:1] == ["2"]:  # what is reserved counts as taken
        parts = (line.partition(":") for line in lines_of(Path("/proc/meminfo")))
        table = {name: int(value.split()[0]) << 10 for name, _, value in parts}
        space = min(space, max(0, table["CommitLimit"] - table["Committed_AS"]))
    return space


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes, in bytes."""

    model: str
    """Folder of the model."""
    resident: int
    """Weights while the engine runs."""
    loading: int
    """The most while the weights are loaded."""
    token: int
    """Keys and values of one token; on a GPU with what attention keeps for its scores."""
    working: int
    """What computing takes."""
    limit: int
    """Positions of the model, in tokens."""

    @classmethod
    def of(
        cls, folder: Path, itemsize: int, *, compiled: bool, on_gpu: bool = False, slots: int = SLOTS
    ) -> Need | None:
        """Read the need from ``config.json``. Returns None where that says too little: the reader of the weights will
        say what is wrong.

        ``itemsize``: bytes of a weight. ``compiled``: the weights are packed once more while they are loaded
        (compiled.py). ``on_gpu``: the memory is a GPU's, in which every buffer has its whole size at once, and which
        the weights enter in their own type.
        """
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
        token = 2 * layers * kv_heads * head_dim * itemsize
        if on_gpu:
            loading = in_torch
            working += 4 * slots * vocab * 4 + 2 * limit * head_dim * 4  # draws in float64; rotations of all positions
            token += heads * (4 if itemsize == 4 else 4 + itemsize) + 4  # scores, shares and mask (torch_decoder.py)
        return cls(str(folder), resident, loading, token, working, limit)


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


class _Space:
    """The memory that is free for keys, values and prefixes, and the words for it."""

    def __init__(self, need: Need, free: Free):
        self.reserve = max(RESERVE, int(RESERVED_SHARE * free.available))
        self.size = free.available - need.resident - need.working - self.reserve
        self.fits = need.loading + self.reserve <= free.available
        weights = f"the weights take {show(need.resident)}"
        if need.loading != need.resident:
            weights += f" ({show(need.loading)} while they are loaded)"
        stays, here = f"{show(self.reserve)} stays free for others", f"{show(free.available)} {free.where} is free"
        self.account = f"{weights}, {stays}, and {here}"
        self.in_words = f"{show(self.size)} is left for keys and values ({here}, {weights}, {stays})"


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
    """Choose what is not given, so that all fits into what is free.

    ``paged``: keys and values take memory as they are written, so that requests share it as they need it; else each
    slot takes its whole context at once. Raises UserError, with the numbers, where the model or what was asked for does
    not fit.
    """
    _check_values(need, slots, max_context, cache_mib)
    space, cache_bytes = _Space(need, free), None if cache_mib is None else cache_mib << 20
    if not space.fits or space.size < need.token * min(need.limit, LEAST_CONTEXT):
        raise UserError(
            f"{need.model} does not fit: {space.account}",
            remedy="use a smaller model, a type with fewer bytes (dtype), or a machine with more memory",
        )
    _check_fits(need, space, max_context, cache_bytes)
    prefix = min(prefix_mib << 20, space.size // 4)
    if cache_bytes is not None:
        prefix = min(prefix, space.size - cache_bytes)
    else:
        prefix = min(prefix, space.size - (max_context or 0) * need.token)
        cache_bytes = space.size - prefix
    tokens = cache_bytes // need.token
    if paged:
        slots, context = slots or SLOTS, max_context or min(need.limit, tokens)
    else:
        slots, context = _slots_of_whole_contexts(need, space, tokens, slots, max_context)
    tokens = min(tokens, slots * context)
    summary = f"{slots} slots x {context:,} tokens; "
    if tokens < slots * context:
        summary += f"{tokens:,} tokens of all requests together, {tokens // context} of full length; others wait; "
    summary += f"keys and values up to {show(tokens * need.token)} of {show(free.available)} free"
    summary += f", weights {show(need.resident)}, prefixes up to {show(prefix)}"
    if max_context is None and context < need.limit:
        summary += f"; the model's {need.limit:,} tokens do not fit"
    return MemoryPlan(slots, context, tokens, prefix, summary)


def _check_values(need: Need, slots: int | None, max_context: int | None, cache_mib: int | None) -> None:
    for name, value in (("slots", slots), ("max_context", max_context), ("cache_mib", cache_mib)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}", remedy="write 1 or more")
    if max_context is not None and max_context > need.limit:
        raise UserError(
            f"max_context {max_context} exceeds the model's {need.limit} positions",
            file=Path(need.model) / "config.json",
            remedy=f"use max_context <= {need.limit}",
        )


def _check_fits(need: Need, space: _Space, max_context: int | None, cache_bytes: int | None) -> None:
    if cache_bytes is not None and cache_bytes > space.size:
        problem = f"cache_mib {cache_bytes >> 20} ({show(cache_bytes)}) does not fit: {space.in_words}"
        raise UserError(problem, remedy="use less")
    if max_context is not None and max_context * need.token > (space.size if cache_bytes is None else cache_bytes):
        request = f"one request of {max_context:,} tokens needs {show(max_context * need.token)} of keys and values"
        limit = space.in_words if cache_bytes is None else f"cache_mib allows {show(cache_bytes)}"
        raise UserError(f"max_context {max_context} does not fit: {request}, and {limit}", remedy="use a smaller one")


def _slots_of_whole_contexts(
    need: Need, space: _Space, tokens: int, slots: int | None, max_context: int | None
) -> tuple[int, int]:
    """The slots and the context where each slot takes the memory of its whole context at once."""
    context = max_context or min(need.limit, max(tokens // (slots or _FEW_SLOTS), min(tokens, _GOOD_CONTEXT)))
    if slots is not None and slots * context > tokens:
        if max_context is None:
            context = max(1, tokens // slots)
        if slots * context > tokens or context < min(need.limit, LEAST_CONTEXT):
            context = max_context or min(need.limit, LEAST_CONTEXT)
            raise UserError(
                f"slots {slots} x max_context {context} does not fit: it needs "
                f"{show(slots * context * need.token)} of keys and values, and {space.in_words}",
                remedy="use fewer slots or a smaller max_context",
            )
    return slots or max(1, min(SLOTS, tokens // context)), context

"""What a folder of packs holds: lengths by group, fill, share of targets, cost imbalance; and a pack to look at.

Numbers come from the index alone, so 5.5M samples take seconds. The functions ``show_*`` return rich renderables, for a
terminal or, through rich's export, for a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.data.batches.balance import assign, assign_in_order, imbalance
from nemo_openmath.data.batches.packed_data import PackedData
from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.data.packs.plan import PackPlan

_BARS = " ▁▂▃▄▅▆▇█"
_BINS = 40


@dataclass(frozen=True, slots=True)
class GroupStats:
    """The samples of one group in an epoch, copies counted."""

    group: str
    samples: int
    tokens: int
    prompt_tokens: int
    num_target_tokens: int
    quantiles: tuple[int, ...]  # tokens of the samples at 0, 10, 50, 90, 99, 100%
    histogram: tuple[int, ...]  # samples by length, in equal steps
    step: int  # tokens


@dataclass(frozen=True, slots=True)
class Imbalance:
    """The slowest rank's attention cost over the mean, averaged over steps.

    ``in_order`` and ``assigned`` are None where a step has fewer packs than there are ranks: then some ranks get none,
    and no assignment helps.
    """

    ranks: int
    batch_samples: int
    packs: int  # of the step with the fewest
    in_order: float | None  # when packs go round one by one
    assigned: float | None  # when they are assigned by cost


@dataclass(frozen=True, slots=True)
class PackStats:
    """What :func:`measure` returns."""

    groups: tuple[GroupStats, ...]
    packs: int
    capacity: int  # tokens of a pack
    fill: float  # tokens and padding over the capacity of all packs
    padding: float  # its share of what fills the packs
    target_share: float  # of the tokens of an epoch
    dropped: dict[str, int]  # samples left out, by reason
    imbalance: tuple[Imbalance, ...]


def measure(
    plan: PackPlan, *, batch_samples: int = 1024, ranks: Sequence[int] = (8, 64), steps: int = 20, seed: int = 0
) -> PackStats:
    """Return the statistics of a plan; the imbalance is that of the first ``steps`` batches of ``batch_samples``."""
    samples = plan.samples
    lengths, prompts, targets = samples.lengths(), samples.prompt_lengths(), samples.target_lengths()
    codes = samples.group_codes()
    entries = np.asarray(plan.entries)
    step = max(1, -(-int(lengths[entries].max()) // _BINS))
    groups = []
    for code, name in enumerate(samples.groups):
        mine = entries[codes[entries] == code]
        if len(mine):
            groups.append(_group(name, lengths[mine], prompts[mine], targets[mine], step))
    filled = plan.meta["tokens_kept"] + plan.meta["padding"]
    return PackStats(
        groups=tuple(groups),
        packs=plan.num_packs,
        capacity=plan.capacity,
        fill=plan.fill,
        padding=plan.meta["padding"] / filled,
        target_share=sum(g.num_target_tokens for g in groups) / sum(g.tokens for g in groups),
        dropped=dict(plan.meta["dropped"]),
        imbalance=_imbalance(plan, batch_samples, ranks, steps, seed),
    )


def _group(name: str, lengths: NDArray, prompts: NDArray, targets: NDArray, step: int) -> GroupStats:
    quantiles = np.quantile(lengths, (0, 0.1, 0.5, 0.9, 0.99, 1), method="nearest")
    return GroupStats(
        group=name,
        samples=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        prompt_tokens=int(prompts.sum(dtype=np.int64)),
        num_target_tokens=int(targets.sum(dtype=np.int64)),
        quantiles=tuple(int(q) for q in quantiles),
        histogram=tuple(np.bincount((lengths - 1) // step, minlength=_BINS).tolist()),
        step=step,
    )


def _imbalance(
    plan: PackPlan, batch_samples: int, ranks: Sequence[int], steps: int, seed: int
) -> tuple[Imbalance, ...]:
    data = PackedData(
        plan,
        batch_samples=batch_samples,
        run_samples=len(plan.entries),
        seed=seed,
        pad_multiple=plan.pad_multiple,
    )
    costs = []
    for step in range(min(steps, max(1, len(plan.entries) // batch_samples))):  # whole steps, or the only one
        costs.append([sum(plan.samples.length(row) ** 2 for row in pack) for pack in data.rows(step)])
    out = []
    for count in ranks:
        fewest = min(map(len, costs), default=0)
        if fewest < count:
            out.append(Imbalance(count, batch_samples, fewest, None, None))
            continue
        in_order = [imbalance(c, assign_in_order(len(c), count)) for c in costs]
        assigned = [imbalance(c, assign(c, count)) for c in costs]
        out.append(Imbalance(count, batch_samples, fewest, float(np.mean(in_order)), float(np.mean(assigned))))
    return tuple(out)


def show_stats(stats: PackStats) -> RenderableType:
    """Return what ``openmath data stats`` prints: a table, a histogram for each group, a few lines; 80 columns do."""
    table = Table(title="Samples of an epoch, lengths in tokens", title_justify="left", box=None, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for column in ("samples", "tokens", "prompt", "target", "10%", "median", "90%", "99%", "longest"):
        table.add_column(column, justify="right", no_wrap=True)
    for g in stats.groups:
        shares = (f"{g.prompt_tokens / g.tokens:.1%}", f"{g.num_target_tokens / g.tokens:.1%}")
        table.add_row(g.group, f"{g.samples:,}", _short(g.tokens), *shares, *(f"{q:,}" for q in g.quantiles[1:]))
    width = max(len(g.group) for g in stats.groups)
    lines = [
        *(f"{g.group:{width}} 0 {_bars(g)} {g.step * len(g.histogram):,} tokens" for g in stats.groups),
        "",
        f"{stats.packs:,} packs of {stats.capacity:,} tokens; {stats.fill:.3%} of their capacity is used",
        f"padding: {stats.padding:.3%} of what is used",
        f"targets of the loss: {stats.target_share:.1%} of all tokens",
        *(f"left out: {count:,} ({reason})" for reason, count in sorted(stats.dropped.items())),
        "attention cost of the slowest data-parallel rank over the mean (1: none waits):",
        *map(_balance, stats.imbalance),
    ]
    return Group(table, Text("\n".join(lines)))


def _balance(i: Imbalance) -> str:
    setting = f"  {i.ranks:3} ranks, {i.batch_samples:,} samples a step: "
    if i.in_order is None or i.assigned is None:
        return f"{setting}a step has only {i.packs} packs"
    return f"{setting}{i.in_order:.3f} in order, {i.assigned:.3f} assigned by cost"


def _short(count: int) -> str:
    """Write 1234567 as 1.235M."""
    for unit, name in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if count >= unit:
            return f"{count / unit:.4g}{name}"
    return f"{count:,}"


def _bars(group: GroupStats) -> str:
    top = max(group.histogram)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // top)] for count in group.histogram)


def show_pack(pack: Pack, tokenizer: ChatTokenizer, *, marks: bool = False) -> Text:
    """Return the text of a pack: green where a token is a target of the loss, else dim, with a line at each boundary.

    Tokens that are only part of a character are shown with the ones that complete it. ``marks``: targets also stand
    between ⟦ and ⟧, for output without colours.
    """
    out = Text()
    bounds = pack.cu_seqlens.tolist()
    for name, (start, stop) in zip(pack.sample_ids, pairwise(bounds), strict=True):
        # A token is a target where the position before it has it as a label of the loss.
        targets = np.concatenate([[False], pack.loss_mask[start : stop - 1]])
        labels = np.flatnonzero(pack.loss_mask[start:stop] | (pack.labels[start:stop] != 0))
        used = int(labels[-1]) + 2 if len(labels) else 1  # the last label is the sample's last token
        share = f"{int(targets.sum())} of {used} tokens are targets, {stop - start - used} of padding"
        out.append(f"──── {name}  [{start}, {stop})  {share}\n", style="bold")
        edges = [0, *(np.flatnonzero(np.diff(targets[:used])) + 1).tolist(), used]
        for a, b in pairwise(edges):
            style = "green" if targets[a] else "dim"
            opening, closing = ("⟦", "⟧") if marks and targets[a] else ("", "")
            out.append(opening).append(tokenizer.decode(pack.tokens[start + a : start + b].tolist()), style=style)
            out.append(closing)
        out.append("\n")
    return out

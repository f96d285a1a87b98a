"""Packs whose losses tell faults apart, chosen from the plan's index alone: no token is read.

Faults of attention need packs of several samples; faults of padding and of context parallelism need lengths that are no
multiples of 2 x CP; means of micro-batches differ from the mean of tokens where packs differ in target tokens.
"""

from __future__ import annotations

import numpy as np

from nemo_openmath.data.packs.plan import PackPlan

_LOOKED_AT = 4096  # packs, evenly over the plan


def choose_packs(plan: PackPlan, number: int) -> list[int]:
    """Return ``number`` packs of ``plan`` (all, where there are no more), in the plan's order.

    Packs of several samples with odd lengths come first; among them, those with the most and with the fewest target
    tokens in turn.
    """
    looked_at = np.unique(np.linspace(0, plan.num_packs - 1, min(_LOOKED_AT, plan.num_packs), dtype=np.int64))
    lengths, targets = plan.samples.lengths(), plan.samples.target_lengths()
    rows = {pack: np.array(plan.rows(pack)) for pack in looked_at.tolist()}
    several = [pack for pack in rows if len(rows[pack]) > 1]
    odd = [pack for pack in several if (lengths[rows[pack]][:-1] % 4).any()]
    best = next((packs for packs in (odd, several) if len(packs) >= number), list(rows))
    by_targets = sorted(best, key=lambda pack: (int(targets[rows[pack]].sum()), pack))
    half = (number + 1) // 2
    return sorted({*by_targets[-half:], *by_targets[: number - half]})

"""Which texts a step of the training reads together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_openmath.speculative.texts import Text

_WINDOW = 32  # batches whose texts are sorted by length, so that little is padding


def batches(texts: Sequence[Text], batch_tokens: int, seed: int) -> list[list[int]]:
    """Return batches as indices of ``texts``: every text once. They are the same in all epochs, which differ in
    :func:`epoch_order`; so what the frozen model says of a batch can be kept.

    A batch is texts of like length, of ``batch_tokens`` at most with padding, or a single longer one.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(texts))
    mean = sum(len(text.ids) for text in texts) / max(1, len(texts))
    window = max(1, int(_WINDOW * batch_tokens / max(1.0, mean)))
    plan: list[list[int]] = []
    for start in range(0, len(order), window):
        batch: list[int] = []
        for i in sorted(order[start : start + window].tolist(), key=lambda i: len(texts[i].ids)):
            if batch and (len(batch) + 1) * len(texts[i].ids) > batch_tokens:
                plan.append(batch)
                batch = []
            batch.append(i)
        plan.append(batch)
    return plan


def epoch_order(num_batches: int, epoch: int, seed: int) -> list[int]:
    """Return the order in which an epoch reads the batches."""
    return np.random.default_rng([seed, 1, epoch]).permutation(num_batches).tolist()


def padding_share(texts: Sequence[Text], plan: Sequence[Sequence[int]]) -> float:
    """Return the share of padding among what the model reads in these batches."""
    read = sum(len(batch) * max(len(texts[i].ids) for i in batch) for batch in plan)
    return 1 - sum(len(texts[i].ids) for batch in plan for i in batch) / read if read else 0.0

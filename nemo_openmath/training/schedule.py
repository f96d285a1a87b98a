"""The learning rate, a pure function of the step: there is nothing to save, and nothing that drifts on a resume."""

from __future__ import annotations

import math

from nemo_openmath.training.config import TrainingConfig


def learning_rate(step: int, num_steps: int, config: TrainingConfig) -> float:
    """Return the learning rate of the update with number ``step`` (from 0) of ``num_steps``.

    It rises linearly from lr / W to lr over the first W = warmup x num_steps updates. Then it stays constant, or falls
    as half a cosine to lr x final_lr_ratio at the last update.
    """
    warmup = round(config.warmup * num_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    final = config.lr * config.final_lr_ratio
    progress = (step + 1 - warmup) / max(1, num_steps - warmup)
    return final + (config.lr - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

"""How a drafter is trained."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_openmath.models.drafter_shape import DraftForm, Recurrence


@dataclass(frozen=True, slots=True)
class DrafterSettings:
    """What :func:`~nemo_openmath.speculative.train.train` is asked for; the stage's
    :class:`~nemo_openmath.speculative.stage.DrafterConfig` says what each number means."""

    form: DraftForm = "redrafter"
    draft_tokens: int = 3
    layers: int = 2
    draft_vocab: int = 0
    recurrence: Recurrence = "silu"
    lr: float = 1e-3
    warmup: float = 0.1  # share of the steps in which the learning rate rises
    epochs: int = 1
    batch_tokens: int = 16384
    measure_every: int = 0  # steps; 0: only at the end
    measured_texts: int = 64  # held-out texts that are measured before the end
    seed: int = 0
    kept_states_bytes: int = 1 << 30
    save_seconds: float = 600.0

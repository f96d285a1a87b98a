"""How packs make up the batches of a training run.

The global batch is counted in samples. The packs of an epoch, shuffled, form one stream of samples; step s is the
samples [s x B, (s + 1) x B) of the epochs' streams laid end to end: exactly B samples at every step but the last of a
run, whatever the packs hold. A pack that straddles the boundary between two steps is cut between two of its samples
(never inside one), and the at most two parts of packs in a step are joined again where they fit.

Nothing in this depends on the parallel layout: ranks ask for the same batch and share its packs out among themselves
(``batch_sharding.py``). Normalise the loss by the target tokens of the whole batch and the step is the same at every
layout, packed or not.
"""

from __future__ import annotations

from typing import Protocol

from nemo_openmath.data.packs.pack import Pack


class PackSource(Protocol):
    """The data of one training run, the same in every process that opens it."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of data, packing and order. It goes into checkpoints: a resume on other data is refused."""
        ...

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        ...

    @property
    def batch_samples(self) -> int:
        """Samples of the global batch of a step."""
        ...

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run."""
        ...

    def batch(self, step: int) -> list[Pack]:
        """Return the global batch of a step (0 <= step < num_steps), at least one pack.

        It is a pure function of (seed, step): identical at every parallel layout and in any order of calls.
        """
        ...

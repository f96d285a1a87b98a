"""How often to save: what a training loses to saving, and to the work that failures undo.

Failures come at random with a mean time ``mtbf`` between them. A training computes for ``interval`` seconds, then a
save stops it for ``stall`` seconds; ``writing`` seconds later the checkpoint can be resumed from. After a failure it
takes ``recovery`` seconds until the training goes on from the last such checkpoint.

- J. W. Young: A first order approximation to the optimum checkpoint interval. Communications of the ACM 17(9), 1974.
- J. T. Daly: A higher order estimate of the optimum checkpoint interval for restart dumps. Future Generation Computer
  Systems 22(3), 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Llama 3 (arXiv 2407.21783, section 3.3.4): 419 unexpected interruptions in 54 days on 16,384 GPUs, 8 to a node.
LLAMA3_INTERRUPTIONS, LLAMA3_DAYS, LLAMA3_NODES = 419, 54, 16384 / 8
NODE_MTBF_HOURS = LLAMA3_DAYS * 24 * LLAMA3_NODES / LLAMA3_INTERRUPTIONS


@dataclass(frozen=True)
class FailureModel:
    """What saving and failures cost one training, in seconds."""

    mtbf: float
    """Mean time between failures of the whole job."""
    stall: float
    """How long a save stops the training."""
    writing: float = 0.0
    """How long after the stall the checkpoint can be resumed from: 0 where the training waits until it is written."""
    recovery: float = 0.0
    """From a failure until the training goes on: a new job, processes, loading."""

    def stop(self, interval: float) -> float:
        """Return how long the training stands still for each save: the stall, and the rest of the writing of the last
        checkpoint where that takes longer than ``interval``."""
        return self.stall + max(0.0, self.writing - interval)

    def lost_share(self, interval: float) -> float:
        """Return the share of the time that is lost where ``interval`` seconds lie between saves, from 0 to 1.

        It is 1 - interval / T with Daly's expected time of an interval (2006, equation 13), T = M exp(R / M)
        (exp((interval + stop) / M) - 1). A checkpoint that is written while the training goes on makes a failure undo
        ``writing`` seconds more: they count as recovery.
        """
        grown = (interval + self.stop(interval)) / self.mtbf
        lost = (self.recovery + self.writing) / self.mtbf
        if grown + lost > 500:  # no interval of this length ever ends
            return 1.0
        return 1.0 - interval / (self.mtbf * math.exp(lost) * math.expm1(grown))

    def young(self) -> float:
        """Return Young's interval: sqrt(2 stall M)."""
        return math.sqrt(2 * self.stall * self.mtbf)

    def daly(self) -> float:
        """Return Daly's interval of higher order (2006, equation 37).

        For stall < 2 M it is sqrt(2 stall M) (1 + sqrt(stall / 2M) / 3 + (stall / 2M) / 9) - stall, else M.
        """
        if self.stall >= 2 * self.mtbf:
            return self.mtbf
        ratio = self.stall / (2 * self.mtbf)
        return self.young() * (1 + math.sqrt(ratio) / 3 + ratio / 9) - self.stall

    def best(self) -> float:
        """Return the interval to take: Daly's, but no shorter than the writing of a checkpoint, which the next save
        waits for."""
        return max(self.daly(), self.writing)

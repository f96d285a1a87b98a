"""How hard problems are for two models: assumed, or as a finished run has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, expit, logit, ndtri  # scipy.stats takes seconds to import

from nemo_openmath.core.errors import UserError
from nemo_openmath.evaluation.sequential.capital import Floats
from nemo_openmath.evaluation.sequential.stratified import Counts

ACCURACY, SPREAD, DISAGREEMENT = 0.6, 0.35, 0.1
_EDGE = 0.002


@dataclass(frozen=True)
class Rates:
    """The chances of a model to solve problems (0 to 1), and how two models differ."""

    chances: Floats
    disagreement: float
    """The standard deviation over problems of p_B - p_A."""
    source: str
    """Where the numbers are from, for the reader."""

    def __post_init__(self) -> None:
        if not 0 < self.disagreement < 1:
            raise UserError("the disagreement lies between 0 and 1", remedy="such as 0.1")

    @property
    def noise(self) -> float:
        """The mean variance of a sample of a problem whose chance is fixed."""
        return float((self.chances * (1.0 - self.chances)).mean())

    def of_benchmark(self, problems: int) -> Floats:
        """Return the chances of a benchmark of so many problems: the same distribution, at equal steps."""
        return np.quantile(self.chances, (np.arange(problems) + 0.5) / problems)

    def pair(self, chances: Floats, difference: float, rng: np.random.Generator) -> Floats:
        """Return chances of A and B (2 x problems) whose mean difference is ``difference`` for these very problems.

        B's log odds are A's, shifted by a number for all and by a normal one for each problem, so that the differences
        vary by ``disagreement`` as far as the ends 0 and 1 leave room. Raises UserError where they leave none for the
        difference itself.
        """
        a = np.clip(chances, _EDGE, 1 - _EDGE)
        if not _EDGE - a.mean() < difference < 1 - _EDGE - a.mean():
            raise UserError(
                f"A solves {a.mean():.0%}: no model differs from it by {100 * difference:g} points",
                remedy="choose a smaller --difference, or another --accuracy",
            )
        normal = ndtri((rng.permutation(len(a)) + 0.5) / len(a))

        def moved(scale: float) -> Floats:
            low, high = -20.0, 20.0
            for _ in range(60):
                middle = (low + high) / 2
                b = expit(logit(a) + middle + scale * normal)
                low, high = (middle, high) if (b - a).mean() < difference else (low, middle)
            return expit(logit(a) + (low + high) / 2 + scale * normal)

        least, most = 0.0, 8.0
        for _ in range(30):
            scale = (least + most) / 2
            least, most = (scale, most) if (moved(scale) - a).std() < self.disagreement else (least, scale)
        return np.stack([a, moved((least + most) / 2)])


def assumed(accuracy: float = ACCURACY, spread: float = SPREAD, disagreement: float = DISAGREEMENT) -> Rates:
    """Return chances with this mean and standard deviation (a beta distribution). Raises UserError where none has."""
    weight = accuracy * (1 - accuracy) / spread**2 - 1 if 0 < accuracy < 1 and spread > 0 else 0.0
    if weight <= 0:
        raise UserError(
            f"no chances have the mean {accuracy:g} and the standard deviation {spread:g}",
            remedy=f"choose a spread below {np.sqrt(max(0.0, accuracy * (1 - accuracy))):.2f}",
        )
    steps = (np.arange(2000) + 0.5) / 2000
    chances = betaincinv(accuracy * weight, (1 - accuracy) * weight, steps)
    source = f"assumed: mean pass rate {accuracy:.2f}, standard deviation over problems {spread:.2f}"
    return Rates(chances, disagreement, f"{source}; of B minus A {disagreement:.2f}")


def measured(names: list[str], right: Counts, counts: Counts, disagreement: float) -> Rates:
    """Return the chances that one or two runs show (runs x problems; the first is A).

    Shares of few samples vary more than the chances do. They are drawn to their mean until they vary as the chances are
    estimated to, and the variance of the differences is corrected for the samples in the same way.

    Raises UserError where a problem has a single sample: nothing can be said of its noise then.
    """
    if counts.min() < 2:
        raise UserError("a problem has fewer than 2 samples", remedy="give a run with at least 2 samples a problem")
    shares = right / counts
    noise = (shares * (1 - shares) / (counts - 1)).mean(axis=1)  # of a share, without bias
    spread = shares[0].var(ddof=1) if shares.shape[1] > 1 else 0.0
    kept = np.sqrt(max(0.0, spread - noise[0]) / spread) if spread else 1.0
    chances = shares[0].mean() + kept * (shares[0] - shares[0].mean())
    source = f"pass rates of {names[0]} ({counts.shape[1]} problems)"
    if len(names) == 2:
        apart = (shares[1] - shares[0]).var(ddof=1) if shares.shape[1] > 1 else 0.0
        disagreement = max(0.01, float(np.sqrt(max(0.0, apart - noise.sum()))))
        source += f"; standard deviation of {names[1]} minus {names[0]} over problems {disagreement:.3f}"
    else:
        source += f"; assumed: standard deviation of B minus A over problems {disagreement:.2f}"
    return Rates(chances, disagreement, source)

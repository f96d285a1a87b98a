"""How many problems and samples a difference needs, and what a benchmark can detect at all.

Two kinds of numbers, which are told apart where they are printed:

- *one look*: a fixed number of samples, and one test at its end. Its power is that of the normal test for this
  benchmark, and of the t test (by the noncentral t distribution) for problems like these.
- *until decided*: what ``openmath evaluate decide`` does. It is simulated, with a seed, and each number has its
  standard error.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
from scipy.special import gammaincinv, ndtr, ndtri, stdtrit

from nemo_openmath.core.errors import UserError
from nemo_openmath.evaluation.sequential.capital import DecisionRule, Ruling
from nemo_openmath.evaluation.sequential.procedure import PASSES
from nemo_openmath.evaluation.sequential.rates import Rates
from nemo_openmath.evaluation.sequential.simulate import fixed_problems, passes_like_these

MOST_PROBLEMS = 10_000_000
SAMPLES = (1, 4, 16, 64)
_NODES, _NODE_WEIGHTS = ((np.polynomial.legendre.leggauss(200)[0] + 1) / 2, np.polynomial.legendre.leggauss(200)[1] / 2)


@dataclass(frozen=True)
class PowerRequest:
    """What is asked."""

    problems: int
    difference: float
    rates: Rates
    alpha: float = 0.05
    power: float = 0.8
    samples: int = 64
    """Of a problem and model, at most, on average."""
    runs: int = 200
    """Comparisons that are simulated."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("difference", self.difference, 0, 1),
            ("alpha", self.alpha, 0, 0.5),
            ("power", self.power, self.alpha, 1),
        ):
            if not low < value < high:
                raise UserError(f"{name} is {value:g}", remedy=f"choose it above {low:g} and below {high:g}")

    @property
    def rule(self) -> DecisionRule:
        """The rule of ``decide``: half of the difference is taken for the smallest that matters."""
        return DecisionRule(self.alpha, self.difference / 2)


@dataclass(frozen=True)
class SimulatedShare:
    """A simulated number with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Detectable:
    """The smallest difference that one look detects, with so many samples of a problem and model (None: no limit)."""

    samples: int | None
    here: float
    """This benchmark."""
    like_these: float | None
    """Problems like these; None where fewer than two problems allow no test."""


@dataclass(frozen=True)
class PowerPlan:
    """The answer. See :func:`make_plan`."""

    request: PowerRequest
    detectable: list[Detectable]
    least_like_these: float
    """See :func:`least_like_these`."""
    samples_here: int
    """Of a problem and model, so that one look at this benchmark has the power."""
    problems_like_these: dict[int, int]
    """Samples of a problem and model -> problems that one look needs."""
    decided_here: SimulatedShare
    """SimulatedShare of comparisons until decided that find the better model."""
    used_here: SimulatedShare
    """Their samples of a problem and model, on average."""
    decided_like_these: SimulatedShare

    def to_json(self) -> dict[str, Any]:
        """Return the plan as data."""
        request = self.request
        return {
            "problems": request.problems,
            "difference": request.difference,
            "alpha": request.alpha,
            "power": request.power,
            "samples": request.samples,
            "seed": request.seed,
            "runs": request.runs,
            "rates": request.rates.source,
            "detectable": [
                {"samples": d.samples, "this_benchmark": d.here, "problems_like_these": d.like_these}
                for d in self.detectable
            ],
            "least_like_these_without_assumptions": self.least_like_these,
            "one_look": {
                "this_benchmark_samples": self.samples_here,
                "problems_like_these_problems": {str(k): n for k, n in self.problems_like_these.items()},
            },
            "until_decided": {
                name: {"value": share.value, "standard_error": share.error}
                for name, share in (
                    ("this_benchmark_decided", self.decided_here),
                    ("this_benchmark_samples", self.used_here),
                    ("problems_like_these_decided", self.decided_like_these),
                )
            },
        }


def make_plan(request: PowerRequest) -> PowerPlan:
    """Return what a difference needs, and what the benchmark detects."""
    rates, n = request.rates, request.problems
    noise = 2 * rates.noise
    detectable = [
        Detectable(s, _detectable_here(request, noise / s), _detectable_like_these(request, noise / s)) for s in SAMPLES
    ]
    detectable.append(Detectable(None, 0.0, _detectable_like_these(request, 0.0)))
    sure = ndtri(1 - request.alpha / 2) + ndtri(request.power)
    rng = np.random.default_rng(request.seed)
    pair = rates.pair(rates.of_benchmark(n), request.difference, rng)
    outcomes = fixed_problems(pair, request.rule, request.samples, request.runs, request.seed)
    population = passes_like_these(
        lambda: rates.pair(rates.of_benchmark(2000), request.difference, rng),
        n,
        request.rule,
        [count for count in PASSES if count < request.samples] + [request.samples],
        request.runs,
        request.seed,
    )
    return PowerPlan(
        request,
        detectable,
        least_like_these(n, request.alpha),
        max(1, ceil(noise / n * (sure / request.difference) ** 2)),
        {s: problems_needed(request, noise / s) for s in SAMPLES},
        SimulatedShare(*outcomes.share(Ruling.B_BETTER)),
        SimulatedShare(*outcomes.mean_samples),
        SimulatedShare(*population.share(Ruling.B_BETTER)),
    )


def normal_power(difference: float, deviation: float, alpha: float) -> float:
    """Return the power of a two-sided normal test whose statistic has this standard deviation."""
    critical, shift = float(ndtri(1 - alpha / 2)), difference / deviation
    return float(ndtr(shift - critical) + ndtr(-shift - critical))


def t_power(difference: float, deviation: float, problems: int, alpha: float) -> float:
    """Return the power of a two-sided t test over problems whose values have this standard deviation."""
    freedom, shift = problems - 1, difference / deviation * sqrt(problems)
    critical = float(stdtrit(freedom, 1 - alpha / 2))
    # the mean over the estimated deviation, whose square has a chi-square distribution; nctdtr is wrong in the tails
    estimated = np.sqrt(2.0 * gammaincinv(freedom / 2, _NODES) / freedom)
    return float(_NODE_WEIGHTS @ (ndtr(shift - critical * estimated) + ndtr(-shift - critical * estimated)))


def least_like_these(problems: int, alpha: float) -> float:
    """Return the smallest difference that any number of samples proves for problems like these, where nothing is
    assumed of how the differences are distributed.

    It is the value d for which the interval of evaluation/intervals.py of n values d begins at 0: behind n equal values
    there may be a share ``w = 1 - (alpha / 2)^(1/n)`` of problems at which B always fails and A never does.
    """
    unseen = 1.0 - (alpha / 2) ** (1 / problems)
    return min(1.0, unseen / (1.0 - unseen))


def _detectable_here(request: PowerRequest, noise: float) -> float:
    sure = float(ndtri(1 - request.alpha / 2) + ndtri(request.power))
    return min(1.0, sure * sqrt(noise / request.problems))


def _detectable_like_these(request: PowerRequest, noise: float) -> float | None:
    if request.problems < 2:
        return None
    deviation = sqrt(request.rates.disagreement**2 + noise)
    low, high = 0.0, 2.0
    for _ in range(40):
        middle = (low + high) / 2
        enough = t_power(middle, deviation, request.problems, request.alpha) >= request.power
        low, high = (low, middle) if enough else (middle, high)
    return min(1.0, high)


def problems_needed(request: PowerRequest, noise: float) -> int:
    """Return how many problems one look needs for problems like these."""
    deviation = sqrt(request.rates.disagreement**2 + noise)
    low, high = 1, 2
    while t_power(request.difference, deviation, high, request.alpha) < request.power:
        low, high = high, 2 * high
        if high > MOST_PROBLEMS:
            raise UserError(f"more than {MOST_PROBLEMS:,} problems", remedy="choose a larger --difference")
    while high - low > 1:
        middle = (low + high) // 2
        enough = t_power(request.difference, deviation, middle, request.alpha) >= request.power
        low, high = (low, middle) if enough else (middle, high)
    return high


def plan_lines(plan: PowerPlan) -> list[str]:
    """Return the plan for people."""
    request = plan.request
    n, d = request.problems, 100 * request.difference
    level = f"error {100 * request.alpha:g}%, power {100 * request.power:g}%"
    lines = [
        f"{n} problems; {request.rates.source}",
        "",
        f"The smallest difference that one look detects ({level}), in points:",
        f"  {'samples each':>12}  {'this benchmark':>14}  {'problems like these':>19}",
    ]
    for row in plan.detectable:
        name = "no limit" if row.samples is None else str(row.samples)
        like = "-" if row.like_these is None else f"{100 * row.like_these:.1f}"
        lines.append(f"  {name:>12}  {100 * row.here:>14.1f}  {like:>19}")
    lines.append(
        f"Where nothing is assumed of how differences vary over problems, {n} problems prove no difference below "
        f"{100 * plan.least_like_these:.1f} points of problems like these, whatever the number of samples."
    )
    least = plan.detectable[-1].like_these
    lines += ["", f"A difference of {d:g} points needs, with one look:"]
    lines.append(f"  this benchmark: {plan.samples_here} samples of each problem and model")
    needs = ", ".join(f"{problems:,} with {s}" for s, problems in plan.problems_like_these.items())
    lines.append(f"  problems like these: so many problems with so many samples each: {needs}")
    if least is None or least > request.difference:
        lines.append(f"  {n} problems are too few for that at any number of samples")
    here, used, like_these = plan.decided_here, plan.used_here, plan.decided_like_these
    lines += [
        "",
        f"Sampled until decided, at most {request.samples} samples each ({request.runs} simulated comparisons, "
        f"seed {request.seed}; +- is a standard error):",
        f"  this benchmark: the better model is found in {_percent(here)}, "
        f"with {used.value:.1f} +- {used.error:.1f} samples each",
        f"  problems like these: in {_percent(like_these)}",
    ]
    return lines


def _percent(share: SimulatedShare) -> str:
    return f"{100 * share.value:.0f}% +- {100 * share.error:.0f}"

"""Comparisons until decided: how often they are wrong however they are stopped, and what they save.

    python benchmarks/decide.py [coverage] [cost]

``coverage``: an adversary stops each comparison at the first moment when the truth lies outside its interval. The share
of comparisons in which there is such a moment is the error; its upper end is Clopper and Pearson's at 99.9%. Beside it,
on the same samples, stands the error of a paired t test of the problems that is made again after each round.

``cost``: samples until a decision, against 64 samples of each problem and model, by difference and number of problems.

Samples are drawn from known chances, seeded; no model is asked. Some five minutes on one core.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from scipy.special import betaincinv, stdtrit

from nemo_openmath.evaluation.sequential.capital import DecisionRule, Floats, Ruling
from nemo_openmath.evaluation.sequential.drawn import DrawnProblems
from nemo_openmath.evaluation.sequential.procedure import round_size
from nemo_openmath.evaluation.sequential.rates import assumed
from nemo_openmath.evaluation.sequential.simulate import fixed_problems
from nemo_openmath.evaluation.sequential.stratified import Counts, ThisBenchmark

RULE = DecisionRule()
RUNS = 2000
LAWS = {
    "even": lambda rng, shape: rng.random(shape),
    "at the ends": lambda rng, shape: rng.beta(0.2, 0.2, shape),
    "hard": lambda rng, shape: rng.beta(0.5, 10, shape),
    "easy": lambda rng, shape: rng.beta(10, 0.5, shape),
    "coins": lambda rng, shape: np.full(shape, 0.5),
}


def coverage() -> bool:
    """Print the errors under optional stopping, and return whether all are below alpha."""
    rng, good = np.random.default_rng(0), True
    print(f"error under optional stopping, alpha {RULE.alpha:.0%}, {RUNS} comparisons each, 32 samples each")
    print(f"{'unknown':22} {'chances':12} {'N':>4} {'truth':>7} {'error':>7} {'below':>7}   t test each round")
    for problems in (5, 15, 30, 100):
        for law, draw in LAWS.items():
            for truth in ("equal", "shuffled", "apart"):
                a = draw(rng, problems)
                b = {"equal": a, "shuffled": rng.permutation(a), "apart": draw(rng, problems)}[truth]
                runs = RUNS if problems < 100 else RUNS // 4
                wrong, naive = _fixed(np.stack([a, b]), runs, rng)
                good &= _row("this benchmark", law, problems, float((b - a).mean()), wrong, naive)
        for law, draw in LAWS.items():
            values = [(rng.binomial(4, draw(rng, (RUNS, problems)))) / 4 for _ in range(2)]
            for whole in (None, problems):
                of_run = values[1] - values[0]
                truth_of = np.zeros(RUNS) if whole is None else of_run.mean(axis=1)
                wrong = _drawn(of_run, whole, truth_of)
                naive = _naive_over_problems(of_run) if whole is None else None
                good &= _row("problems like these" if whole is None else "full run", law, problems, 0.0, wrong, naive)
    return good


def _row(name: str, law: str, problems: int, truth: float, wrong: Floats, naive: Floats | None) -> bool:
    count, runs = int(wrong.sum()), len(wrong)
    upper = float(betaincinv(count + 1, runs - count, 0.999)) if count < runs else 1.0
    lower = float(betaincinv(count, runs - count + 1, 0.001)) if count else 0.0
    beside = "" if naive is None else f"   {naive.mean():.3f}"
    print(f"{name:22} {law:12} {problems:4} {truth:+7.3f} {count / runs:7.4f} {upper:7.4f}{beside}", flush=True)
    return lower <= RULE.alpha


def _fixed(chances: Floats, runs: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return whether the truth was ever outside, by our interval and by that of a t test of all problems' shares."""
    truth, problems = float((chances[1] - chances[0]).mean()), chances.shape[1]
    state = ThisBenchmark(problems, RULE, runs, ((truth, 1), (truth, -1)), keeps_rounds=False)
    counts: Counts = np.ones((runs, 2, problems), np.int64)
    made, naive, sums, looks = 0, np.zeros(runs, bool), [], 0
    while True:
        right = rng.binomial(counts, chances)
        state.add(counts, right)
        shares = right / counts
        sums.append((shares[:, 1] - shares[:, 0]).mean(axis=1))
        looks += 1
        if looks >= 4:  # a t test over the rounds so far: each is an unbiased look at these problems
            seen = np.array(sums)
            error = seen.std(axis=0, ddof=1) / np.sqrt(looks)
            naive |= np.abs(seen.mean(axis=0) - truth) > stdtrit(looks - 1, 0.975) * error
        made += int(counts[0].sum())
        left = 2 * problems * 32 - made
        if left < 2 * problems:
            return state.refuted[truth, 1] | state.refuted[truth, -1], naive
        counts = state.plan(min(round_size(made, problems), left))


def _drawn(values: Floats, whole: int | None, truths: Floats) -> Floats:
    """Return whether the truth of each run was ever outside."""
    wrong = np.zeros(len(values), bool)
    for truth in np.unique(truths):
        rows = truths == truth
        claims = ((float(truth), 1), (float(truth), -1))
        state = DrawnProblems(RULE, whole, int(rows.sum()), claims)
        state.add(values[rows])
        wrong[rows] = state.refuted[claims[0]] | state.refuted[claims[1]]
    return wrong


def _naive_over_problems(values: Floats) -> Floats:
    """Return whether a t test of all problems so far, made again after each, ever finds a difference that is not."""
    wrong = np.zeros(len(values), bool)
    for seen in range(4, values.shape[1] + 1):
        part = values[:, :seen]
        error = part.std(axis=1, ddof=1) / np.sqrt(seen)
        wrong |= np.abs(part.mean(axis=1)) > stdtrit(seen - 1, 0.975) * error
    return wrong


def cost() -> None:
    """Print what a decision takes."""
    rates, rng = assumed(), np.random.default_rng(1)
    print(f"\nthis benchmark until decided, against 64 samples each; {rates.source}; smallest that matters: 2 points")
    print(f"{'N':>5} {'difference':>10} {'B better':>9} {'equal':>6} {'open':>6} {'samples each':>13} {'saved':>7}")
    for problems in (15, 30, 100, 300):
        for difference in (0.0, 0.01, 0.03, 0.05, 0.1, 0.2):
            pair = rates.pair(rates.of_benchmark(problems), difference, rng)
            outcomes = fixed_problems(pair, RULE, 64, 200 if problems < 300 else 60, 2)
            each, error = outcomes.mean_samples
            shares = [outcomes.share(v)[0] for v in (Ruling.B_BETTER, Ruling.EQUAL, Ruling.UNDECIDED)]
            print(
                f"{problems:5} {100 * difference:10.0f} {shares[0]:9.0%} {shares[1]:6.0%} {shares[2]:6.0%} "
                f"{each:7.1f} ± {error:3.1f} {1 - each / 64:7.0%}",
                flush=True,
            )


def main() -> None:
    sections = sys.argv[1:] or ["coverage", "cost"]
    begun, good = time.monotonic(), True
    if "coverage" in sections:
        good = coverage()
        print("every error is below alpha, as far as chance can tell" if good else "AN ERROR IS ABOVE ALPHA")
    if "cost" in sections:
        cost()
    print(f"{time.monotonic() - begun:.0f} s")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()

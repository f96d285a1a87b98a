"""What is found, in sentences for people and as data."""

from __future__ import annotations

from typing import Any

from nemo_openmath.evaluation.sequential.capital import DecisionRule, Ruling
from nemo_openmath.evaluation.sequential.procedure import Estimand, Found
from nemo_openmath.evaluation.sequential.replay import Replay

MEANS = {
    Estimand.THIS_BENCHMARK: "over exactly these problems",
    Estimand.PROBLEMS_LIKE_THESE: "over all problems of which these are a draw",
    Estimand.FULL_RUN: "as a run of all problems with that many samples each would print it",
}


def points(value: float) -> str:
    """Return a difference in points: ``+3.1``."""
    return f"{100 * value:+.1f}"


def interval(found: Found, alpha: float) -> str:
    """Return ``+3.1 points (95%: +0.2 to +6.0)``. The interval holds at all times at once."""
    level = f"{100 * (1 - alpha):.3g}%"
    return f"{points(found.difference)} points ({level}: {points(found.low)} to {points(found.high)})"


def sentence(found: Found, rule: DecisionRule, names: tuple[str, str], estimand: Estimand, limit: str) -> str:
    """Return what is decided, of models A and B called ``names``."""
    a, b = names
    what = {
        Ruling.B_BETTER: f"decided: {b} is better than {a}",
        Ruling.A_BETTER: f"decided: {a} is better than {b}",
        Ruling.EQUAL: f"decided: {a} and {b} are equal within {100 * rule.delta:g} points",
        Ruling.UNDECIDED: f"undecided: {limit}",
    }[found.verdict]
    return f"{what}; {b} minus {a}: {interval(found, rule.alpha)} {MEANS[estimand]}"


def waits_for(found: Found, rule: DecisionRule) -> str:
    """Return what a comparison that is not decided waits for."""
    return (
        f"{interval(found, rule.alpha)}; decided once 0 lies outside, or all of it within "
        f"{100 * rule.delta:g} points of 0"
    )


def found_json(found: Found) -> dict[str, Any]:
    """Return what is found as data."""
    return {
        "verdict": found.verdict.name.lower(),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
    }


def replay_lines(replay: Replay, rule: DecisionRule, estimand: Estimand, names: tuple[str, str]) -> list[str]:
    """Return what a replay says, line by line."""
    first, (saved, error) = replay.orders[0], replay.saved
    lines = [
        f"stored: {replay.problems} problems, {replay.stored_samples:,} samples, {replay.stored_tokens:,} tokens; "
        f"difference of all of them {points(replay.difference)} points",
        f"in the order of the samples: {sentence(first.finding, rule, names, estimand, first.limit)}; "
        f"{first.samples:,} samples, {first.tokens:,} tokens",
    ]
    if len(replay.orders) > 1:
        shares = {ruling.name.lower().replace("_", " "): replay.share(ruling) for ruling in Ruling}
        told = ", ".join(f"{name} {100 * share:.0f}%" for name, share in shares.items() if share)
        lines.append(f"over {len(replay.orders)} orders: {told}")
    lines.append(
        f"tokens saved against all stored samples: {100 * saved:.1f}%"
        + (f" (standard error {100 * error:.1f})" if len(replay.orders) > 1 else "")
    )
    if replay.apart:
        lines.append(f"left out: {replay.apart} problems that a model could not be asked")
    if replay.undecided_grades:
        lines.append(f"counted as wrong: {replay.undecided_grades} samples that the grader could not decide")
    return lines


def replay_json(replay: Replay) -> dict[str, Any]:
    """Return a replay as data."""
    saved, error = replay.saved
    return {
        "problems": replay.problems,
        "apart": replay.apart,
        "undecided_grades": replay.undecided_grades,
        "difference_of_all": replay.difference,
        "stored_samples": replay.stored_samples,
        "stored_tokens": replay.stored_tokens,
        "saved": saved,
        "saved_standard_error": error,
        "orders": [
            {**found_json(order.finding), "samples": order.samples, "tokens": order.tokens} for order in replay.orders
        ],
    }

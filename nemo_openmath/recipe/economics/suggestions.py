"""What the sums of a run say about the next one, in words. Silent where they do not say enough.

A sentence stands on at least ``PROBLEMS`` problems and ``EVENTS`` events (accepted samples, samples that ended at a
limit), and on an interval that excludes the contrary. All intervals of one kind of sentence hold together with 95%,
however many classes were looked at (Bonferroni), so that looking long enough finds nothing by chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemo_openmath.evaluation.reports.economics import Suggestion, digits
from nemo_openmath.evaluation.reports.formats import mode_name
from nemo_openmath.recipe.economics.counting import ALL, Class, Counts, Interval, PairedRatio, Tally, share_of
from nemo_openmath.recipe.economics.samples import UNKNOWN, SampleStage

PROBLEMS, EVENTS = 30, 20
BEYOND = 0.1
"""Least share of tokens on problems that are solved already, by the lower end of its interval."""
LIMITED = 0.05
"""Least share of tokens that end at a limit, likewise."""
_LIMITS = {
    "unfinished (length)": "end at the length limit (`max_tokens` {max_tokens}): a higher limit lets them end, a "
    "lower one spends less on them",
    "repeats itself": "repeat themselves until they are stopped: fewer `repetition`s ({repetition}) stop them earlier",
    "over the code budget": "ask for more code than `budgets` {budgets} allows: larger budgets let them end",
    "no code was run": "run no code: the prompt, or `tool_format`, does not bring this model to call it",
    "its code was not called": "write code that nothing runs: another `tool_format` may fit this model",
}
"""Reason -> what to do about it. ``{...}``: settings of the stage that made the samples."""


def suggestions(counts: Counts, used: list[SampleStage]) -> list[Suggestion]:
    """Return what can be said, what matters most first."""
    out = [*_beyond(counts, used), *_more(counts, used), *_models(counts), *_limits(counts, used)]
    return sorted(out, key=lambda suggestion: -suggestion.tokens)


def _beyond(counts: Counts, used: list[SampleStage]) -> Iterator[Suggestion]:
    """Where filters keep only so many solutions of a problem: fewer samples of those that have them."""
    limited = [(at, tallies) for at, tallies in counts.stages.items() if used[at[0]].limited and tallies]
    tests = sum(of[0] in (ALL, "pass rate") for _, tallies in limited for of in tallies)
    for (stage, model, mode), tallies in limited:
        clear: dict[Class, tuple[Tally, tuple[float, float]]] = {}
        for of, tally in tallies.items():
            is_part = of[0] == "pass rate" and of[1] != UNKNOWN and tally.problems < tallies[ALL, ""].problems
            interval = tally.beyond.interval(tests) if tally.problems >= PROBLEMS else None
            if (is_part or of[0] == ALL) and interval is not None and interval[0] >= BEYOND:
                clear[of] = tally, interval
        for of, (tally, interval) in clear.items():
            if of[0] == ALL and len(clear) > 1:
                continue  # the classes say it more exactly
            name, quota = used[stage].stage.name, used[stage].quota
            yield Suggestion(
                f"Lower `samples` of {name} for {_class(of)}: {tally.beyond.over:,.0f} of {tally.tokens:,} tokens of "
                f"{model} ({mode_name(mode)}), {_share(tally.beyond.value, interval)}, came after a problem had the "
                f"{quota} good solution{'s' * (quota != 1)} that are kept; so many can be saved at most, over "
                f"{tally.problems:,} problems. `count: hardness` makes fewer of easy ones.",
                int(tally.beyond.over),
            )


def _more(counts: Counts, used: list[SampleStage]) -> Iterator[Suggestion]:
    """Where the last sample of a problem still solved many that no sample before it had."""
    for (stage, model, mode), tallies in counts.stages.items():
        if not tallies:
            continue
        whole = tallies[ALL, ""]
        classes = {of: t for of, t in tallies.items() if of[0] != "pass rate" and t.last_tries >= PROBLEMS}
        overall = share_of(whole.last_solved, whole.last_tries) if whole.last_tries else (0.0, 1.0)
        for of, tally in classes.items():
            low, high = share_of(tally.last_solved, tally.last_tries, len(classes))
            unsolved = tally.last_tries - tally.last_solved
            if tally.last_solved < EVENTS or low < 0.05 or not unsolved or (of[0] != ALL and low <= overall[1]):
                continue
            each = tally.tokens / tally.samples
            rate = tally.last_solved / tally.last_tries
            yield Suggestion(
                f"Raise `samples` of {used[stage].stage.name} for {_class(of)}: of {tally.last_tries:,} problems that "
                f"had no good solution before their last sample by {model} ({mode_name(mode)}), that sample solved "
                f"{tally.last_solved:,}, {_share(rate, (low, high))}. One more for each of the {unsolved:,} others "
                f"would take about {unsolved * each:,.0f} tokens and solve at most some {unsolved * rate:,.0f}: what "
                "is left is harder.",
                int(unsolved * each),
            )


def _models(counts: Counts) -> Iterator[Suggestion]:
    """Which model, or mode, gives more accepted samples for its tokens on the same problems.

    Not by pass rate: it may be measured by samples of one of the two, which then chose the problems where it had luck.
    """
    pairs = {key: pair for key, pair in counts.pairs.items() if key[2][0] != "pass rate" and _enough(pair)}
    for (first, second, of), pair in pairs.items():
        interval = pair.interval(len(pairs))
        if interval is None or interval[0] <= 1 <= interval[1]:
            continue
        overall = counts.pairs[first, second, (ALL, "")].interval(len(pairs))
        if of[0] != ALL and overall is not None and not (interval[0] > overall[1] or interval[1] < overall[0]):
            continue  # as on all problems
        better, worse, factor, ends = first, second, pair.value, interval
        if factor < 1:
            better, worse, factor, ends = second, first, 1 / factor, (1 / interval[1], 1 / interval[0])
        rates = [1e6 * pair.sums[at] / pair.sums[at + 1] for at in (0, 2)]
        high, low = max(rates), min(rates)
        yield Suggestion(
            f"{_name(better)} gives {factor:.1f}x as many accepted samples per token as {_name(worse)} on {_class(of)} "
            f"({ends[0]:.1f} to {ends[1]:.1f}): {high:,.{digits(high)}f} and {low:,.{digits(low)}f} in a million "
            f"tokens, on the same {pair.n:,} problems.",
            int(pair.sums[3] if better == first else pair.sums[1]),
        )


def _enough(pair: PairedRatio) -> bool:
    return pair.n >= PROBLEMS and min(pair.sums[0], pair.sums[2]) >= EVENTS


def _limits(counts: Counts, used: list[SampleStage]) -> Iterator[Suggestion]:
    """Tokens of solutions that a limit, or the lack of code, made useless."""
    known = {key: loss for key, loss in counts.losses.items() if key[2] in _LIMITS}
    for (model, mode, reason), loss in known.items():
        interval = loss.tokens.interval(len(known))
        if loss.samples < EVENTS or loss.tokens.n < PROBLEMS or interval is None or interval[0] < LIMITED:
            continue
        settings = _settings(counts, used, model, mode)
        what = _LIMITS[reason].format_map(_Settings(settings))
        yield Suggestion(
            f"{_share(loss.tokens.value, interval)} of the tokens of {model} ({mode_name(mode)}) are of solutions that "
            f"{what}. {loss.samples:,} samples, {loss.tokens.over:,.0f} tokens.",
            int(loss.tokens.over),
        )


class _Settings(dict[str, Any]):
    """Settings whose values differ between stages, or are not known yet, have a word instead."""

    def __missing__(self, name: str) -> str:
        return "as set"


def _settings(counts: Counts, used: list[SampleStage], model: str, mode: str) -> dict[str, Any]:
    """Return the settings in which all stages agree that made a model's samples."""
    made = [used[at].stage.settings for at, *key in counts.stages if tuple(key) == (model, mode)]
    return {name: value for name, value in made[0].items() if all(of.get(name) == value for of in made)}


def _name(model: tuple[str, str]) -> str:
    return f"{model[0]} ({mode_name(model[1])})"


def _class(of: Class) -> str:
    if of[0] == ALL:
        return "all problems"
    kind, value = of[0].replace("_", " "), of[1]
    if kind == "pass rate" and value != "unknown":
        return f"problems with pass rate {value}"
    return f"problems of {kind} {value}" if value != "unknown" else f"problems of unknown {kind}"


def _share(value: float, interval: Interval) -> str:
    if interval is None:
        return f"{value:.1%}"
    return f"{value:.1%} ({100 * max(0.0, interval[0]):.1f}–{min(100.0, 100 * interval[1]):.1f})"

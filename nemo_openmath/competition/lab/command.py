"""What the verbs of ``openmath contest`` do: read rollouts, rehearse contests, print tables and write a folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.competition.answers import AnswerRule
from nemo_openmath.competition.lab.calibration import DRAWS, brier_interval, fit_prior, judge_prior
from nemo_openmath.competition.lab.contest import ContestPlan, ContestSettings, Laboratory, Rehearsal
from nemo_openmath.competition.lab.page import Curve, page_of
from nemo_openmath.competition.lab.reading import Rollouts, read_rollouts
from nemo_openmath.competition.lab.search import SearchResult, halves, read_choices, read_policy, search
from nemo_openmath.competition.lab.speed import Speed
from nemo_openmath.competition.policy import Policy
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.outputs import partial_file, refuse_foreign_folder
from nemo_openmath.core.records import Mode
from nemo_openmath.grading.pool import GradingPool

RESULT = "contest.json"
BUDGETS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Times of a contest, as multiples of the one that is asked for, of the curve of scores."""
SHOWN = 10  # rows of a table of candidates or of problems


@dataclass(frozen=True)
class Asked:
    """What all verbs are asked for."""

    rollouts: tuple[Path, ...]
    speed: str
    settings: ContestSettings
    output: Path | None = None
    mode: Mode | None = None
    selections: tuple[Path, ...] = ()
    code_seconds: float = 0.0
    rule: AnswerRule = field(default_factory=AnswerRule)

    def open(self) -> tuple[Rollouts, Speed | None]:
        """Read the rollouts; answers are compared in processes with limits."""
        if self.output is not None:
            refuse_foreign_folder(self.output, "a folder of this laboratory", [RESULT])
            self.output.mkdir(parents=True, exist_ok=True)  # what cannot be written is known before the work
        speed = Speed.parse(self.speed)
        with closing(GradingPool()) as pool:
            rollouts = read_rollouts(
                self.rollouts,
                pool.grade_batch,
                mode=self.mode,
                selections=self.selections,
                code_seconds=self.code_seconds,
                rule=self.rule,
            )
        for note in rollouts.notes:
            print(f"note: {note}", file=sys.stderr)
        return rollouts, speed


def replay_policies(asked: Asked, policies: Sequence[Path]) -> list[str]:
    """Rehearse the contests under each policy, and return the lines to print."""
    named = [(path.stem, read_policy(path)) for path in policies] or [("paper", Policy())]
    if len({name for name, _ in named}) < len(named):
        raise UserError("two policies have one name", remedy="give their files different names")
    rollouts, speed = asked.open()
    laboratory = Laboratory(rollouts.problems, speed)
    plan = ContestPlan.make(rollouts.problems, asked.settings)
    rehearsals = [(name, laboratory.rehearse(policy, plan)) for name, policy in named]
    lines = _heading(rollouts, rehearsals[0][1], speed)
    lines += ["", _TITLES, *(_line(name, rehearsal) for name, rehearsal in rehearsals)]
    lines += _unselected(rehearsals)
    curves = []
    for name, policy in named if asked.output is not None else ():
        _say(f"{name}: scores against the time")
        curves.append(Curve(name, tuple(_at_budgets(laboratory, rollouts, policy, asked.settings))))
    if asked.output is not None:
        _write(asked.output, "replay", asked, rehearsals, [], page_of("Replay", lines, curves, rehearsals))
        _write_problems(asked.output, rehearsals)
        lines += ["", f"{asked.output / 'contest.html'}: scores against the time of a problem, and the loss"]
    return lines


def divide_loss(asked: Asked, policy: Path | None) -> list[str]:
    """Return the lines of the loss of a policy: shares, and the problems that lose most."""
    chosen = Policy() if policy is None else read_policy(policy)
    rollouts, speed = asked.open()
    plan = ContestPlan.make(rollouts.problems, asked.settings)
    rehearsal = Laboratory(rollouts.problems, speed).rehearse(chosen, plan)
    name = "paper" if policy is None else policy.stem
    lines = _heading(rollouts, rehearsal, speed)
    lines += ["", *loss_lines(rehearsal)]
    worst = sorted(rehearsal.tallies, key=lambda t: (t.score, t.id))[:SHOWN]
    lines += ["", f"{'problem':<42}{'runs':>6}{'right':>8}{'coverage':>10}{'selection':>11}{'time':>8}{'seconds':>9}"]
    for t in worst:
        shares = [n / t.runs for n in (t.right, t.loss.coverage, t.loss.selection, t.loss.time)]
        lines.append(
            f"{t.id:<42.41}{t.runs:>6}{shares[0]:>8.2f}{shares[1]:>10.2f}{shares[2]:>11.2f}{shares[3]:>8.2f}"
            f"{t.seconds / t.runs:>9.1f}"
        )
    if asked.output is not None:
        _write(asked.output, "loss", asked, [(name, rehearsal)], [], page_of("Loss", lines, [], [(name, rehearsal)]))
        _write_problems(asked.output, [(name, rehearsal)])
    return lines


def loss_lines(rehearsal: Rehearsal) -> list[str]:
    """Return the score and the three shares of the loss, which add up to 1, each a mean over problems."""
    tallies = rehearsal.tallies
    coverage, selection, time, lucky = (
        sum(getattr(t.loss, name) / t.runs for t in tallies) / len(tallies)
        for name in ("coverage", "selection", "time", "lucky")
    )
    lines = [
        f"score      {rehearsal.score:7.4f}   right",
        f"coverage   {coverage:7.4f}   no solution that was begun is right",
        f"selection  {selection:7.4f}   a right solution was there and not chosen, even without a deadline",
        f"time       {time:7.4f}   right without a deadline, by the same policy",
        f"sum        {rehearsal.score + coverage + selection + time:7.4f}",
    ]
    if lucky:
        lines.append(f"of the score, {lucky:.4f} is right only because the deadline came")
    return lines


def search_policies(asked: Asked, choices: Path) -> list[str]:
    """Search for a policy, and return the lines to print."""
    wanted = read_choices(choices)
    rollouts, speed = asked.open()
    outcome = search(rollouts.problems, wanted, asked.settings, speed, _say)
    lines = _heading(rollouts, outcome.searched, speed, halves=True)
    lines += [f"{len(wanted.candidates):,} candidates of {choices.name}", *_left_out(wanted.refused, "no policy")]
    lines += _left_out(outcome.unfit, "not to be replayed with these rollouts")
    last = outcome.rounds[-1]
    lines += [
        "",
        f"best {min(SHOWN, len(last.scores))} on the half that was searched, {last.contests} contests (biased)",
    ]
    lines += [f"  {score:.4f}  {tokens:>9,.0f} tokens  {c}" for c, score, tokens in last.scores[:SHOWN]]
    lines += ["", *_verdict(outcome)]
    if asked.output is not None:
        rehearsals = [("winner", outcome.held_out), ("before", outcome.held_out_base)]
        rows = [
            {"choices": dict(c.choices), "contests": r.contests, "score": score, "tokens": tokens}
            for r in outcome.rounds
            for c, score, tokens in r.scores
        ]
        _write(asked.output, "search", asked, rehearsals, rows, page_of("Search", lines, [], rehearsals))
        _write_problems(asked.output, rehearsals)
        policy = asked.output / "policy.yaml"
        policy.write_text(_yaml(outcome.winner.policy), encoding="utf-8")
        lines += ["", f"{policy}: the winner"]
    return lines


def calibrate_prior(asked: Asked, policy: Path | None) -> list[str]:
    """Fit the prior of the rule ``bayes`` on half of the problems, and return the lines that judge it on the other."""
    chosen = replace(Policy() if policy is None else read_policy(policy), rule="bayes")
    rollouts, _ = asked.open()
    first, second = (
        [p for p in half if any(s.whole and s.answer is not None for s in p.solutions)]
        for half in halves(rollouts.problems)
    )
    if not first or not second:
        raise UserError("half of the problems have no answer", remedy="give solutions of more problems")
    fitted = fit_prior(first, chosen.bayes)
    priors = {"before": chosen.bayes, "fitted": fitted}
    judged = {
        name: judge_prior(second, prior, most=chosen.batch, seed=asked.settings.seed) for name, prior in priors.items()
    }
    lines = [
        f"fitted on {len(first)} problems, judged on {len(second)} others, after each of the first {chosen.batch} "
        f"answers in {DRAWS} orders",
        "",
        f"{'prior':<10}{'accuracy a, b':>18}{'spread':>9}{'Brier score':>13}",
    ]
    for name, prior in priors.items():
        a, b = prior.accuracy
        lines.append(f"{name:<10}{f'{a:.3g}, {b:.3g}':>18}{prior.spread:>9.3g}{judged[name].brier.mean():>13.4f}")
    value, low, high = brier_interval(judged["before"], judged["fitted"])
    clear = "better" if high < 0 else "worse" if low > 0 else "not clearly different"
    lines += ["", f"fitted minus before: {value:+.4f} (95% interval over problems {low:+.4f} to {high:+.4f}): {clear}"]
    for name, cases in judged.items():
        lines += ["", f"{name}: probability said of the leading answer, and the share that is right"]
        lines += [
            f"  {low:.2f} to {high:.2f}: said {stated:.3f}, right {right:.3f} ({number:,} cases of {problems} problems)"
            for low, high, number, problems, stated, right in cases.table()
        ]
    if asked.output is not None:
        policy_file = asked.output / "policy.yaml"
        _replace(policy_file, _yaml(replace(chosen, bayes=fitted)).encode())
        _replace(asked.output / RESULT, orjson.dumps({"verb": "calibrate", "lines": lines}, option=orjson.OPT_INDENT_2))
        lines += ["", f"{policy_file}: the policy with the fitted prior"]
    return lines


def _verdict(outcome: SearchResult) -> list[str]:
    """Return what is said of the winner on the half that it was not chosen on."""
    value, low, high = outcome.difference
    clear = "better" if low > 0 else "worse" if high < 0 else "not clearly different"
    return [
        f"winner: {outcome.winner}",
        "",
        _TITLES,
        _line("searched: winner", outcome.searched),
        _line("searched: before", outcome.searched_base),
        _line("held out: winner", outcome.held_out),
        _line("held out: before", outcome.held_out_base),
        "",
        f"held out, winner minus before: {value:+.4f} (95% interval over problems {low:+.4f} to {high:+.4f}): {clear}",
        f"the winner's score on the searched half is the best of {len(outcome.rounds[0].scores):,} and so too high; "
        "the held-out half was looked at once",
    ]


_TITLES = f"{'policy':<20}{'score':>8}  {'95% interval':<18}{'coverage':>9}{'selection':>10}{'time':>8}{'seconds':>9}{'tokens':>11}  points of a contest (5% to 95%)"  # noqa: E501


def _line(name: str, r: Rehearsal) -> str:
    low, high = r.interval
    losses = [sum(getattr(t.loss, n) / t.runs for t in r.tallies) / len(r.tallies) for n in _CAUSES]
    points = sorted(r.points)
    low_end, high_end = points[int(0.05 * len(points))], points[min(len(points) - 1, int(0.95 * len(points)))]
    mean = sum(points) / len(points)
    return (
        f"{name:<20.19}{r.score:>8.4f}  {f'{low:.4f} to {high:.4f}':<18}{losses[0]:>9.4f}{losses[1]:>10.4f}"
        f"{losses[2]:>8.4f}{r.seconds:>9.1f}{r.tokens:>11,.0f}  {mean:.1f} of {r.size} ({low_end:g} to {high_end:g})"
    )


_CAUSES = ("coverage", "selection", "time")


def _heading(rollouts: Rollouts, rehearsal: Rehearsal, speed: Speed | None, *, halves: bool = False) -> list[str]:
    s, number = rehearsal.settings, sum(len(p.solutions) for p in rollouts.problems)
    split = ", half of them to search on, half held out" if halves else ""
    runs = ", each problem run twice" if s.twice else ""
    total = "" if s.total_seconds is None else f", {s.total_seconds:g} s in all"
    return [
        f"{number:,} stored solutions of {len(rollouts.problems):,} problems{split}",
        f"{len(rehearsal.points):,} contests of {rehearsal.size} problems{runs}; {s.base_seconds:g} s a problem, up to "
        f"{s.bank_seconds:g} s from the bank{total}; seed {s.seed}",
        "speed: times as stored" if speed is None else f"speed (solutions at once:tokens/s of each): {speed}",
    ]


def _left_out(entries: Sequence[tuple[str, str]], what: str) -> list[str]:
    if not entries:
        return []
    name, why = entries[0]
    return [f"{len(entries):,} combinations left out as {what}, for example {name}: {why}"]


def _unselected(rehearsals: Sequence[tuple[str, Rehearsal]]) -> list[str]:
    return [
        f"{name}: {r.unselected:,} of {sum(t.runs for t in r.tallies):,} runs wanted a selection, and none was stored "
        "among their solutions: the vote decided"
        for name, r in rehearsals
        if r.unselected
    ]


def _at_budgets(
    laboratory: Laboratory, rollouts: Rollouts, policy: Policy, settings: ContestSettings
) -> list[tuple[float, Rehearsal]]:
    """Return (seconds of a problem, rehearsal) for several times of a contest."""
    points = []
    for factor in BUDGETS:
        total = None if settings.total_seconds is None else settings.total_seconds * factor
        changed = replace(
            settings,
            base_seconds=settings.base_seconds * factor,
            bank_seconds=settings.bank_seconds * factor,
            total_seconds=total,
        )
        plan = ContestPlan.make(rollouts.problems, changed)
        points.append((changed.base_seconds, laboratory.rehearse(policy, plan)))
    return points


def _write(
    folder: Path,
    verb: str,
    asked: Asked,
    rehearsals: Sequence[tuple[str, Rehearsal]],
    candidates: Sequence[dict[str, Any]],
    page: str,
) -> None:
    """Write the result and its page. The result comes last: it marks the folder as whole."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "verb": verb,
        "rollouts": [str(path) for path in asked.rollouts],
        "speed": asked.speed,
        "settings": asdict(asked.settings),
        "answers": asdict(asked.rule),
        "policies": [
            {
                "name": name,
                "policy": asdict(r.policy),
                "score": r.score,
                "interval": r.interval,
                "problems": len(r.tallies),
                "seconds": r.seconds,
                "tokens": r.tokens,
                "points": r.points,
            }
            for name, r in rehearsals
        ],
        "candidates": list(candidates),
    }
    _replace(folder / "contest.html", page.encode())
    _replace(folder / RESULT, orjson.dumps(result, option=orjson.OPT_INDENT_2))


def _write_problems(folder: Path, rehearsals: Sequence[tuple[str, Rehearsal]]) -> None:
    """Write a row for each problem of each policy: runs that were right, and what the others were lost to."""
    rows = [
        {
            "policy": name,
            "problem_id": t.id,
            "runs": t.runs,
            "right": t.right,
            **asdict(t.loss),
            "seconds": t.seconds / t.runs,
            "tokens": t.tokens / t.runs,
        }
        for name, r in rehearsals
        for t in r.tallies
    ]
    _replace(folder / "problems.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in rows))


def _replace(file: Path, content: bytes) -> None:
    partial = partial_file(file)
    partial.write_bytes(content)
    partial.replace(file)


def _yaml(policy: Policy) -> str:
    import yaml

    return yaml.safe_dump(orjson.loads(orjson.dumps(asdict(policy))), sort_keys=False)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

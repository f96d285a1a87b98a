"""Wrong answers that are kept, and how true their probabilities are: plain majority, repair and the model of answers.

    OMP_NUM_THREADS=1 python benchmarks/answers.py [--problems 600] [--samples 2] [--seed 1] [--folder DIR]

The tiny world knows the true answer of each of its problems. The script runs the stages of the recipe, with the
stand-in as teacher, up to the labels, and compares them with the truth; `labels` are those that a rule keeps, and each
line is also held against the most probable labels of the model, as many. That teacher errs anew in each solution. Three
more tables have a teacher whose errors repeat: it misreads a share of the problems, and gives most of its solutions
the same wrong answer there. It stands beside the forum and the first teacher, beside the forum and the first teacher's
CoT solutions, and beside the forum alone: two witnesses, too few for the model.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_openmath.core.records import Problem, read_records
from nemo_openmath.demo.world import parse
from nemo_openmath.grading import GradingPool, majority
from nemo_openmath.synthesis.answers.gather import GivenAnswer
from nemo_openmath.synthesis.answers.latent import fit, posterior
from nemo_openmath.synthesis.answers.noise import BestAnswers, kept_patterns, label_noise
from nemo_openmath.synthesis.answers.patterns import Table, pattern_of
from nemo_openmath.synthesis.answers.reliability import Reliability
from nemo_openmath.synthesis.answers.votes import ProblemVotes, count_votes

ROOT = Path(__file__).parents[1]
COMMAND = "from nemo_openmath.cli.main import main; raise SystemExit(main())"
RECIPE = """\
name: answers
seed: {seed}
teacher: {{url: null, tokenizer: {root}/examples/base}}
sandbox: {{workers: 2}}
x-solve: &solve {{run: rollout.generate, from: problems, engine: teacher, samples: {samples}, max_tokens: 256}}
stages:
  benchmark: {{run: demo.benchmark, problems: 50}}
  threads:
    run: demo.threads
    from: benchmark
    forum: {{single: {single}, several: {several}, proof: {proof}, leaked: 10, reworded: 10, wrong: 0.08}}
  extracted: {{run: problems.extract, from: threads, engine: teacher}}
  classified: {{run: problems.classify, from: extracted, engine: teacher}}
  converted: {{run: problems.convert_proofs, from: {{problems: classified, threads: threads}}, engine: teacher}}
  problems: {{run: problems.extract_answers, from: {{problems: converted, threads: threads}}, engine: teacher}}
  cot: {{<<: *solve, mode: cot}}
  tir: {{<<: *solve, mode: tir, budgets: [1, 8], code_seconds: 5.0, output_chars: 200}}
  labelled: {{run: solutions.majority_answers, from: {{problems: problems, generations: [cot, tir]}}}}
  repaired:
    run: solutions.majority_answers
    from: {{problems: problems, generations: [cot, tir]}}
    repair: majority
    repair_least: {least}
  graded: {{run: solutions.grade, from: {{generations: [cot, tir], problems: problems}}}}
  judged: {{run: judging.judge, from: {{generations: graded, problems: problems}}, engine: teacher, everything: true}}
  votes: {{run: solutions.answer_votes, from: {{problems: problems, generations: judged}}}}
  calibrated: {{run: solutions.calibrated_answers, from: votes, threshold: 0.0}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=600)
    parser.add_argument("--samples", type=int, default=2, help="solutions of a problem in each mode")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--misread", type=float, default=0.25, help="share of problems that the second teacher misreads"
    )
    parser.add_argument("--folder", type=Path, help="keep the run there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = run_recipe(options, options.folder or Path(scratch))
        problems = {p.id: p for p in read_records(run / "votes", Problem)}
        truth = {name: item.answer for name, p in problems.items() if (item := parse(p.problem)) is not None}
        print(
            f"{len(truth)} problems of the tiny world, {options.samples} CoT and {options.samples} TIR solutions each"
        )
        votes = {name: ProblemVotes.of(problems[name]) for name in truth}
        rules = {
            "forum, else majority of CoT and TIR": labels(read_records(run / "labelled", Problem), truth, forum=True),
            "solutions.majority_answers": labels(read_records(run / "labelled", Problem), truth),
            "the same with repair: majority": labels(read_records(run / "repaired", Problem), truth),
        }
        compare("The stand-in: its errors are independent", {n: v for n, v in votes.items() if v}, truth, rules)
        title = f"A teacher that misreads {options.misread:.0%} of the problems and then errs alike"
        besides = ("the first teacher", ("cot", "tir")), ("its CoT solutions", ("cot",)), ("the forum alone", ())
        for beside, modes in besides:
            compare(f"{title}, beside {beside}", stubborn_teacher(problems, truth, votes, modes, options), truth, {})


def run_recipe(options: argparse.Namespace, folder: Path) -> Path:
    """Run the stages up to the labels and return the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = {"single": options.problems * 3 // 4, "several": options.problems // 30, "proof": options.problems // 5}
    recipe = folder / "answers.yaml"
    recipe.write_text(
        RECIPE.format(seed=options.seed, root=ROOT, samples=options.samples, least=min(8, 2 * options.samples), **shape)
    )
    command = [
        sys.executable,
        "-m",
        "nemo_openmath.cli.main",
        "recipe",
        "run",
        str(recipe),
        "--output",
        str(folder / "run"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return folder / "run"


def labels(problems: Iterable[Problem], truth: Mapping[str, str], *, forum: bool = False) -> dict[str, str]:
    """Return the answers of problems whose truth is known. ``forum``: the forum's own, wherever it has one."""
    known = {p.id: p for p in problems if p.id in truth}
    return {
        name: (p.extra["answer"]["forum"] if forum else None) or p.expected_answer or "" for name, p in known.items()
    }


# -- a teacher whose errors repeat -------------------------------------------------------------------------------------


def stubborn_teacher(
    problems: Mapping[str, Problem],
    truth: Mapping[str, str],
    others: Mapping[str, ProblemVotes | None],
    modes: Sequence[str],
    options: argparse.Namespace,
) -> dict[str, ProblemVotes]:
    """Return votes of a teacher that misreads some problems: there 9 of 10 of its solutions have one wrong answer.
    ``modes``: of the solutions of ``others`` that stand beside it."""
    votes = {}

    async def count() -> None:
        with GradingPool() as pool:
            for name, answer in truth.items():
                rng = random.Random(f"{options.seed} {name}")
                misread = str(int(answer) + rng.choice((-1, 1, 2))) if rng.random() < options.misread else None
                given = [
                    GivenAnswer(_answer(answer, misread, rng), "stubborn", own)  # type: ignore[arg-type]
                    for own in ("cot", "tir")
                    for _ in range(8)
                ]
                given += _given(others[name], modes)
                votes[name] = await count_votes(problems[name], sorted(given), pool)

    asyncio.run(count())
    return votes


def _given(votes: ProblemVotes | None, modes: Sequence[str]) -> list[GivenAnswer]:
    return [
        GivenAnswer(c.answer, source[0], source[1])  # type: ignore[arg-type]
        for c in (votes.classes if votes else ())
        for source, number in c.votes
        if source[1] in modes
        for _ in range(number)
    ]


def _answer(right: str, misread: str | None, rng: random.Random) -> str:
    usual = right if misread is None else misread
    return usual if rng.random() < 0.9 else str(int(right) + rng.choice((-7, -3, 3, 7, 11)))


# -- the comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """An answer and a claimed probability for each problem."""

    answer: Mapping[str, str]
    p: Mapping[str, float]

    def best(self, number: int) -> list[str]:
        return sorted(self.answer, key=lambda name: (-self.p[name], hashlib.sha256(name.encode()).digest()))[:number]


def majority_labels(votes: Mapping[str, ProblemVotes]) -> Labels:
    """Return the plain majority of solutions, whatever the forum says; its share is what it claims."""
    answer, p = {}, {}
    for name, problem in votes.items():
        sizes = [(sum(n for source, n in c.votes if source[0] != "forum"), c.answer) for c in problem.classes]
        total = sum(size for size, _ in sizes)
        if total:
            best = max(sizes, key=lambda entry: entry[0])
            answer[name], p[name] = best[1], best[0] / total
    return Labels(answer, p)


def model_labels(votes: Mapping[str, ProblemVotes], *, independent: bool) -> tuple[Labels, str]:
    """Return the most probable answers, and a line about the model."""
    table = Table.build(votes[name] for name in sorted(votes))
    fitted = fit(table, independent=independent)
    choice, place = BestAnswers.of(table, posterior(table, fitted.parameters)), table.place()
    answer, p = {}, {}
    for name, problem in votes.items():
        if problem.classes:
            i = place[pattern_of(problem)]
            answer[name] = problem.classes[choice.answer[i] - table.first_answer[i]].answer
            p[name] = float(choice.p[i])
    kept = kept_patterns(choice, table.weights, 0.5, None)
    noise = label_noise(table, fitted, choice, kept, seed=1, resamples=0 if independent else 50)
    interval = "" if independent else f" ({noise.low:.0f} to {noise.high:.0f})"
    wrong = f"{noise.wrong:.1f} of {noise.problems} wrong{interval}"
    return Labels(answer, p), wrong


def compare(
    title: str, votes: Mapping[str, ProblemVotes], truth: Mapping[str, str], rules: Mapping[str, Mapping[str, str]]
) -> None:
    """Print a table of the wrong labels of each rule beside those of the model, and the calibration."""

    def wrong(answers: Mapping[str, str], names: Iterable[str] | None = None) -> int:
        return sum(not _same(answers[name], truth[name]) for name in (answers if names is None else names))

    plain = majority_labels(votes)
    correlated, about = model_labels(votes, independent=False)
    independent, about_independent = model_labels(votes, independent=True)
    print(f"\n## {title}\n\n| rule | labels | wrong | of the model's best, as many: wrong |\n|---|---|---|---|")
    lines: list[tuple[str, Mapping[str, str], Sequence[str]]] = [(n, a, list(a)) for n, a in rules.items()]
    lines += [("majority of all solutions, forum ignored", plain.answer, list(plain.answer))]
    for share in (0.9, 0.7):
        names = plain.best(round(share * len(plain.answer)))
        lines.append((f"its {share:.0%} with the largest shares", plain.answer, names))
    for name, answers, names in lines:
        of_model = wrong(correlated.answer, correlated.best(len(names)))
        print(f"| {name} | {len(names)} | {wrong(answers, names)} | {of_model} |")
    for threshold in (0.5, 0.9, 0.99):
        names = [name for name, p in correlated.p.items() if p >= threshold]
        print(f"| the model, P >= {threshold} | {len(names)} | {wrong(correlated.answer, names)} | |")
    print("\n| probabilities of | expected calibration error | Brier | overconfidence |\n|---|---|---|---|")
    for name, given in (
        ("the model of answers", correlated),
        ("the same, votes of a model taken for independent", independent),
        ("the majority: its share", plain),
    ):
        c = Reliability.of([given.p[n] for n in given.answer], [_same(a, truth[n]) for n, a in given.answer.items()])
        print(f"| {name} | {c.error:.4f} | {c.brier:.4f} | {c.overconfidence:+.4f} |")
    for name, given, text in (("correlated", correlated, about), ("independent", independent, about_independent)):
        names = [n for n, p in given.p.items() if p >= 0.5]
        print(f"\nP >= 0.5, {name}: the model expects {text}; true: {wrong(given.answer, names)} of {len(names)}")
    print("\n| P | answers | mean P | right |\n|---|---|---|---|")
    c = Reliability.of(
        [correlated.p[n] for n in correlated.answer], [_same(a, truth[n]) for n, a in correlated.answer.items()]
    )
    for b in c.bins:
        print(f"| {b.low} to {b.high} | {b.answers} | {b.p:.4f} | {b.right:.4f} |")


def _same(answer: str, truth: str) -> bool:
    return majority([answer, truth]).count == 2


if __name__ == "__main__":
    main()

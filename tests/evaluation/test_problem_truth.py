"""Stages of a problem set against what a generated forum holds: the counts are those of a plain computation."""

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Drop, Problem, RecordWriter, Thread
from nemo_openmath.core.records.store import write_records
from nemo_openmath.demo import ForumConfig, StandInTeacher, TeacherConfig, make_benchmark, make_threads
from nemo_openmath.evaluation.intervals import share_interval
from nemo_openmath.evaluation.problem_stages import MeasureProblems, ProblemTruthConfig
from nemo_openmath.synthesis.problems.classify import Classify, ClassifyConfig
from nemo_openmath.synthesis.problems.convert import ConvertProofs
from nemo_openmath.synthesis.problems.extract import Extract
from nemo_openmath.synthesis.problems.labelled import known_problems
from nemo_openmath.synthesis.problems.prompted import OnePromptConfig
from tests.support.services import Lent, stage_context

PORTS = ("truth", "extracted", "classified", "converted", "answered", "decontaminated")


class Compared:
    """A grader that knows equal texts, and that 07 is 7."""

    def compare(self, predicted: str, expected: str) -> Any:
        from nemo_openmath.core.grader import Grade, Verdict

        equal = predicted.lstrip("0") == expected.lstrip("0")
        return Grade(Verdict.EQUAL if equal else Verdict.NOT_EQUAL, "")


class WithGrader(Lent):
    async def grading(self) -> Any:
        return Compared()


class NoisyStages:
    """Stages that err at random and write down what they did: (stage, what) -> right, wrong, missed."""

    def __init__(self, folder: Path, error: float):
        self.folder, self.error, self.rng = folder, error, random.Random(5)
        self.expected: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def errs(self) -> bool:
        return self.rng.random() < self.error

    def count(self, stage: str, what: str, **kinds: bool) -> None:
        self.expected[stage, what].update({kind: 1 for kind, holds in kinds.items() if holds})

    def writer(self, port: str) -> RecordWriter:
        return RecordWriter(self.folder / port)

    def make(self, rows: list[dict[str, Any]]) -> None:
        threads = [Thread.make(**row) for row in rows]
        write_records(self.folder / "truth", threads)
        problems: list[tuple[Problem, dict[str, Any] | None]] = []
        with self.writer("extracted") as out:
            for thread, row in zip(threads, rows, strict=True):
                made = []
                for known in row["known_problems"]:
                    if lost := self.errs():
                        self.count("extraction", "problems", missed=True)
                    if not lost:
                        # the same problem in another form
                        text = (
                            known["problem"].replace("Find the", "Please find the ")
                            if self.errs()
                            else known["problem"]
                        )
                        made.append((Problem.make(text, parents=(thread.id,)), known))
                        self.count("extraction", "problems", right=True)
                if self.errs():
                    made.append((Problem.make(f"Invented {thread.id}?", parents=(thread.id,)), None))
                    self.count("extraction", "problems", wrong=True)
                out.commit(thread.id, [p for p, _ in made], [] if made else [Drop("no problem in the post")])
                problems += made
        problems = [self.classified(p, known) for p, known in problems]
        with self.writer("classified") as out:
            for problem, _ in problems:
                kept = problem.category in ("answer", "proof")
                out.commit(problem.id, [problem] if kept else [], [] if kept else [Drop(problem.category or "?")])
        problems = [(p, known) for p, known in problems if p.category in ("answer", "proof")]
        with self.writer("converted") as out:
            problems = [new for p, known in problems if (new := self.converted(p, known, out)) is not None]
        with self.writer("answered") as out:
            problems = [self.answered(p, known, out) for p, known in problems]
        with self.writer("decontaminated") as out:
            for problem, known in problems:
                leaked = known is not None and known["in_benchmark"]
                dropped = leaked != self.errs()
                out.commit(
                    problem.id, [] if dropped else [problem], [Drop("in the benchmark, reworded")] if dropped else []
                )
                if known is not None and (leaked or dropped):
                    hit = leaked and dropped
                    self.count(
                        "decontamination", "in the benchmark", right=hit, wrong=not leaked, missed=not hit and leaked
                    )

    def classified(self, problem: Problem, known: dict[str, Any] | None) -> tuple[Problem, dict[str, Any] | None]:
        right = "answer" if known is None else known["category"]
        words = ("proof", "multiple-choice", "binary", "invalid", "answer", "unparsable answer")
        got = self.rng.choice([word for word in words if word != right]) if self.errs() else right
        if known is not None:
            self.count("classification", right, right=got == right, missed=got != right)
            if got not in (right, "unparsable answer"):
                self.count("classification", got, wrong=True)
        return problem.with_(category=got), known

    def converted(self, problem: Problem, known: dict[str, Any] | None, out: RecordWriter) -> Any:
        if problem.category != "proof":
            out.commit(problem.id, [problem])
            return problem, known
        value = None if known is None else known["converted_answer"]
        if (value is None) != self.errs():
            out.commit(problem.id, [], [Drop("proof that cannot be converted")])
            if value is not None:
                self.count("conversion", "proofs with a value", missed=True)
            return None
        got = "0" + value if value is not None and not self.errs() else "-1"
        made = Problem.make(
            f"Converted {problem.id}", expected_answer=got, problem_type="converted_proof", category="answer",
            parents=(problem.id, *problem.parents),
        )  # fmt: skip
        out.commit(problem.id, [made])
        if known is not None:
            right = got != "-1"
            missed = not right and value is not None
            self.count("conversion", "proofs with a value", right=right, wrong=not right, missed=missed)
        return made, known

    def answered(self, problem: Problem, known: dict[str, Any] | None, out: RecordWriter) -> Any:
        if problem.problem_type == "converted_proof":
            out.commit(problem.id, [problem])
            return problem, known
        settled = None if known is None else known["discussed_answer"]
        got = self.rng.choice([None, "-2"]) if self.errs() else settled
        name = "no_answer_extracted" if got is None else "has_answer_extracted"
        problem = problem.with_(expected_answer=got, problem_type=name)
        out.commit(problem.id, [problem])
        if known is not None:
            self.count(
                "answers", "as the replies settle on",
                right=got is not None and got == settled,
                wrong=got is not None and got != settled,
                missed=settled is not None and got != settled,
            )  # fmt: skip
            true = known["expected_answer"]
            if true is not None:
                self.count(
                    "answers", "as is true", right=got == true, wrong=got not in (None, true), missed=got != true
                )
        return problem, known


async def measured(folder: Path, ports: tuple[str, ...] = PORTS) -> list[dict[str, Any]]:
    inputs = {port: [folder / port] if port in ports else [] for port in PORTS}
    context = stage_context(inputs, folder / "out", services=WithGrader())
    await MeasureProblems(ProblemTruthConfig()).run(context)
    return context.metrics["truth"]


@pytest.mark.parametrize("error", [0.0, 0.25])
async def test_precision_and_recall_of_each_stage_are_those_of_a_plain_count(tmp_path: Path, error: float) -> None:
    config = ForumConfig(single=60, several=15, none=5, proof=30, beyond=8, choice=8, binary=8, broken=8, wrong=0.0)
    benchmark = make_benchmark(1, 40)
    stages = NoisyStages(tmp_path, error)
    rows_by_text = {str(row["known_problems"]): row for row in make_threads(config, 1, benchmark)}  # each problem once
    stages.make(list(rows_by_text.values()))
    rows = {(row["stage"], row["what"]): row for row in await measured(tmp_path)}
    whole = rows.pop(("the whole", "problem set"))
    counted = {key: Counter({k: row[k] for k in ("right", "wrong", "missed") if row[k]}) for key, row in rows.items()}
    assert counted == {key: counts for key, counts in stages.expected.items() if counts}
    for row in rows.values():
        right, wrong, missed = row["right"], row["wrong"], row["missed"]
        if right + wrong:
            low, high = share_interval(np.array([1.0] * right + [0.0] * wrong))
            assert (row["precision"], row["precision_low"], row["precision_high"]) == (
                right / (right + wrong),
                low,
                high,
            )
        if right + missed:
            assert row["recall"] == right / (right + missed)
    if not error:
        assert (whole["wrong"], whole["missed"]) == (0, 0)
        kept = [
            k
            for row in rows_by_text.values()
            for k in row["known_problems"]
            if k["expected_answer"] or k["converted_answer"]
        ]
        assert whole["right"] == sum(not k["in_benchmark"] for k in kept)
    else:
        assert whole["wrong"] > 0 < whole["missed"]


async def test_labels_say_what_they_are_and_may_say_little(tmp_path: Path) -> None:
    thread = Thread.make("Find x.", known_problems=[{"problem": "Find x.", "discussed_answer": 7}])
    (known,) = known_problems(thread) or ()
    assert known.discussed_answer == "7"
    write_records(tmp_path / "truth", [thread, Thread.make("not labelled")])
    with RecordWriter(tmp_path / "extracted") as out:
        out.commit(thread.id, [Problem.make("Find  x.", parents=(thread.id,))])
    rows = await measured(tmp_path, ("truth", "extracted"))
    assert next((row["stage"], row["right"], row["precision"]) for row in rows) == ("extraction", 1, 1.0)
    for label, message in (
        ("Find x.", "is not a list"),
        (["Find x."], "without the text 'problem'"),
        ([{"problem": "x", "kind": "proof"}], "unknown field 'kind'"),
        ([{"problem": "x", "category": "lemma"}], "has category 'lemma'; known: invalid, multiple"),
        ([{"problem": "x", "expected_answer": True}], "expected_answer True, which is no text"),
        ([{"problem": "x", "in_benchmark": "no"}], "has in_benchmark 'no'; write true or false"),
    ):
        with pytest.raises(UserError, match=message):
            known_problems(Thread.make("Find x.", known_problems=label))
    write_records(tmp_path / "other" / "truth", [Thread.make("another", known_problems=[])])
    (tmp_path / "extracted").rename(tmp_path / "other" / "extracted")
    with pytest.raises(UserError, match="none of the threads that were asked about is labelled"):
        await measured(tmp_path / "other", ("truth", "extracted"))


RATES = TeacherConfig(extract_error=0.1, convert_error=0.2)


async def test_the_rates_at_which_the_stand_in_errs_are_within_the_intervals(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    class Teacher(WithGrader):
        async def engine(self, name: str) -> Any:
            return StandInTeacher(tokenizer, RATES), tokenizer

    config = ForumConfig(single=70, several=0, none=5, proof=40, beyond=5, choice=0, binary=0, broken=0)
    rows_by_text = {str(row["known_problems"]): row for row in make_threads(config, 2, make_benchmark(2, 40))}
    write_records(tmp_path / "truth", [Thread.make(**row) for row in rows_by_text.values()])
    stages = (
        ("extracted", Extract(OnePromptConfig()), {"threads": "truth"}),
        ("classified", Classify(ClassifyConfig()), {"problems": "extracted"}),
        ("converted", ConvertProofs(ConvertProofs.Config()), {"problems": "classified", "threads": "truth"}),
    )
    for name, stage, inputs in stages:
        folders = {port: [tmp_path / folder] for port, folder in inputs.items()}
        await stage.run(stage_context(folders, tmp_path / name, services=Teacher(tokenizer=tokenizer)))
    rows = {(row["stage"], row["what"]): row for row in await measured(tmp_path, PORTS[:4])}

    extraction = rows["extraction", "problems"]
    # a problem is left out, or cut: half and half, and a cut one may be seen by the stage and asked for again
    assert extraction["recall_low"] <= 1 - 0.1 / 2
    assert extraction["recall_high"] >= 1 - 0.1
    conversion = rows["conversion", "proofs with a value"]
    assert conversion["precision_low"] <= 1 - 0.2 <= conversion["precision_high"]
    assert extraction["missed"] > 0 < conversion["wrong"], "the intervals are of something"

"""Read stored rollouts: folders of judged generations, or one table with named columns.

A table (JSON Lines, CSV or Parquet) has a row for each solution:

- ``problem_id``, ``answer`` (null or empty: none), ``right`` (true or false), ``tokens``
- where known ``seconds``, ``entropy`` (mean negative log-probability of the answer's tokens), ``whole`` (false: it
  was cut off at a limit of its length) and ``expected_answer``

Answers are read by the rule of the contest, and what it changed is judged anew; then they are compared in the grader's
processes, each pair once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_openmath.chat import Transcript
from nemo_openmath.competition.answers import AnswerRule
from nemo_openmath.competition.lab.glimpses import glimpses_of
from nemo_openmath.competition.lab.grouping import Compare, pairs_of
from nemo_openmath.competition.lab.rollouts import StoredProblem, StoredSelection, StoredSolution
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Grade, Verdict
from nemo_openmath.core.records import Generation, Mode, read_records
from nemo_openmath.core.records.notes import Selection, Timing
from nemo_openmath.core.records.readers import read_rows
from nemo_openmath.grading.extraction import extract_answer

GradeBatch = Callable[[Iterable[tuple[str | None, str | None]]], list[Grade]]
"""Grades many pairs: ``GradingPool.grade_batch``."""
_COLUMNS = ("problem_id", "answer", "right", "tokens", "seconds", "entropy", "whole", "expected_answer")
_REQUIRED = _COLUMNS[:4]


@dataclass(frozen=True)
class Rollouts:
    """The problems of a laboratory, and what has to be said of them."""

    problems: tuple[StoredProblem, ...]
    notes: tuple[str, ...] = ()

    @property
    def fewest(self) -> int:
        """The solutions of the problem that has the fewest."""
        return min(len(p.solutions) for p in self.problems)


@dataclass
class _Read:
    """What was read of one problem."""

    solutions: list[StoredSolution] = field(default_factory=list)
    expected: str | None = None
    untried: bool = False
    changed: set[str] = field(default_factory=set)
    """Answers that whole solutions have by the rule of the contest alone."""
    selections: list[tuple[Generation, Selection]] = field(default_factory=list)


def read_rollouts(
    paths: Sequence[Path],
    grade: GradeBatch,
    *,
    mode: Mode | None = None,
    selections: Sequence[Path] = (),
    code_seconds: float = 0.0,
    rule: AnswerRule = AnswerRule(),  # noqa: B008  # frozen
) -> Rollouts:
    """Return the stored rollouts of folders of records, or of tables.

    - ``mode``: only solutions of this mode; None: there must be one mode alone.
    - ``selections``: folders of ``genselect.select`` whose candidates are among the solutions.
    - ``code_seconds``: what a run of code is taken to take where nobody kept its time.
    - ``rule``: which answers the contest takes.

    Raises UserError naming the record or the row that cannot be used.
    """
    for number, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise UserError("is given twice", file=path, remedy="name each folder and each table once")
    notes: Counter[str] = Counter()
    read: defaultdict[str, _Read] = defaultdict(_Read)
    folders = [path for path in paths if path.is_dir()]
    if folders and len(folders) < len(paths):
        raise UserError("folders of records and tables are given together", remedy="give one kind")
    if folders:
        _read_folders(folders, read, notes, mode, code_seconds)
    else:
        for path in paths:
            _read_table(path, read)
    if not read:
        raise UserError("there is no solution in it", file=paths[0], remedy="give solutions with verdicts")
    _read_selections(selections, read, notes)
    if untried := [name for name, problem in read.items() if problem.untried]:
        notes["problems left out, for the model could not be asked"] = len(untried)
        for name in untried:
            del read[name]
    if not read:
        raise UserError("no problem is left: the model could be asked none of them", file=paths[0])
    for name, problem in read.items():
        _read_answers(name, problem, rule, notes)
    problems = _graded(read, grade, notes)
    lines = [f"{count:,} {text}" for text, count in sorted(notes.items()) if count]
    return Rollouts(tuple(problems), tuple(lines))


def _read_folders(
    folders: Sequence[Path], read: Mapping[str, _Read], notes: Counter[str], mode: Mode | None, code_seconds: float
) -> None:
    seen: set[str] = set()
    kinds: dict[tuple[Mode, str], str] = {}
    for folder in folders:
        for generation in sorted(read_records(folder, Generation), key=lambda g: (g.problem_id, g.sample, g.id)):
            if mode is not None and generation.mode is not mode:
                notes[f"generations of mode {generation.mode} left out"] += 1
                continue
            if generation.mode not in (Mode.COT, Mode.TIR):
                raise UserError(
                    f"{generation.id} is of mode {generation.mode}, which is no solution",
                    file=folder,
                    remedy="give a folder of graded solutions; selections have their own option, --selections",
                )
            if generation.id in seen:
                raise UserError(f"generation {generation.id} is given twice", remedy="name each folder once")
            seen.add(generation.id)
            kinds.setdefault((generation.mode, generation.model), generation.id)
            if len(kinds) > 1:
                several = ", ".join(f"{kind} of {model}" for kind, model in sorted(kinds))
                raise UserError(f"solutions of several kinds: {several}", file=folder, remedy="choose with --mode")
            problem = read[generation.problem_id]
            if not generation.tried:
                problem.untried = True
                continue
            problem.expected = generation.expected_answer
            problem.solutions.append(_solution(generation, folder, notes, code_seconds))


def _solution(generation: Generation, folder: Path, notes: Counter[str], code_seconds: float) -> StoredSolution:
    if generation.verdict is None:
        raise UserError(
            f"generation {generation.id} has no verdict", file=folder, remedy="give the folder of the judging stage"
        )
    notes["solutions whose verdict is open count as wrong"] += generation.verdict in (
        Verdict.UNKNOWN,
        Verdict.TIMEOUT,
    )
    timing = Timing.of(generation)
    tokens = generation.completion_tokens
    points: tuple[tuple[float, int], ...] = ()
    if timing is not None:
        points = timing.points
    elif code_seconds and generation.code_calls:
        points = _spread(tokens, generation.code_calls, code_seconds)
        notes["solutions have code without a time: --code-seconds each, evenly over their tokens"] += 1
    elif generation.code_calls:
        notes["solutions have code without a time: it takes none"] += 1
    endless = timing is not None and timing.cut
    notes["solutions were cut off while they ran: here they go on without an end"] += endless
    text = Transcript.from_json(generation.transcript, ids=False).said
    answer, right = generation.predicted_answer, generation.correct
    if not generation.finished:  # what there is of it is searched for an answer; _graded says whether that is right
        answer, right = extract_answer(text).answer, False
    return StoredSolution(
        generation.id,
        answer or None,
        right,
        tokens,
        points,
        None
        if timing is None
        else next((s for s in (timing.answer_surprise, timing.tail_surprise) if s is not None), None),
        generation.finished,
        endless,
        glimpses_of(text, tokens),
    )


def _spread(tokens: int, calls: int, seconds: float) -> tuple[tuple[float, int], ...]:
    """Return points of a solution that calls code at even distances. They say how long code runs, and nothing else."""
    points: list[tuple[float, int]] = []
    for call in range(1, calls + 1):
        at = tokens * call // (calls + 1)
        points += [((call - 1) * seconds, at), (call * seconds, at)]
    return (*points, (calls * seconds, tokens))


def _read_table(path: Path, read: Mapping[str, _Read]) -> None:
    judged: dict[tuple[str, str], tuple[bool, int]] = {}
    for file, row, values in read_rows(path):
        lacking = [name for name in _REQUIRED if name not in values]
        if lacking:
            raise UserError(f"no column {lacking[0]!r}", file=file, row=row, remedy=f"needed: {', '.join(_REQUIRED)}")
        if unknown := [name for name in values if name not in _COLUMNS]:
            raise UserError(
                f"unknown column {unknown[0]!r}", file=file, row=row, remedy=f"known: {', '.join(_COLUMNS)}"
            )
        name = _text(values["problem_id"], "problem_id", file, row)
        problem = read[name]
        answer = values["answer"]
        answer = None if answer in (None, "") else _text(answer, "answer", file, row)
        tokens = int(_number(values["tokens"], "tokens", file, row))
        seconds, entropy = (
            None if values.get(name) in (None, "") else _number(values[name], name, file, row)
            for name in ("seconds", "entropy")
        )
        _expect(problem, values.get("expected_answer"), file, row)
        right = _flag(values["right"], "right", file, row)
        if right and answer is None:
            raise UserError("right is true, and there is no answer", file=file, row=row, remedy="mend the row")
        if answer is not None:
            before, first = judged.setdefault((name, answer.strip()), (right, row))
            if before != right:
                problem_text = f"right is {right}, and the same answer to the same problem is {before} in row {first}"
                raise UserError(problem_text.replace("True", "true").replace("False", "false"), file=file, row=row)
        problem.solutions.append(
            StoredSolution(
                f"{file.name}:{row}",
                answer,
                right,
                tokens,
                () if seconds is None else ((seconds, tokens),),
                entropy,
                _flag(values.get("whole", True), "whole", file, row),
            )
        )


def _expect(problem: _Read, value: Any, file: Path, row: int) -> None:
    if value in (None, ""):
        return
    expected = _text(value, "expected_answer", file, row)
    if problem.expected not in (None, expected):
        before = f"expected_answer is {expected!r}, and {problem.expected!r} in a row before"
        raise UserError(before, file=file, row=row, remedy="give each problem one expected answer")
    problem.expected = expected


def _text(value: Any, name: str, file: Path, row: int) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise UserError(f"{name} is {value!r}", file=file, row=row, remedy="give a text or a number")
    return str(value)


def _number(value: Any, name: str, file: Path, row: int) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number < 1e12:
        raise UserError(f"{name} is {value!r}", file=file, row=row, remedy="give a number, 0 or more")
    return number


def _flag(value: Any, name: str, file: Path, row: int) -> bool:
    known = {"true": True, "false": False, "1": True, "0": False}
    if (text := str(value).lower()) not in known:
        raise UserError(f"{name} is {value!r}", file=file, row=row, remedy="write true or false")
    return known[text]


def _read_selections(folders: Sequence[Path], read: Mapping[str, _Read], notes: Counter[str]) -> None:
    for folder in folders:
        for generation in sorted(read_records(folder, Generation), key=lambda g: (g.problem_id, g.sample, g.id)):
            if generation.mode is not Mode.GENSELECT:
                raise UserError(
                    f"{generation.id} is of mode {generation.mode}, which is no selection",
                    file=folder,
                    remedy="give folders of genselect.select",
                )
            if generation.problem_id not in read:
                notes["selections of other problems left out"] += 1
                continue
            read[generation.problem_id].selections.append((generation, Selection.of(generation)))


def _read_answers(name: str, problem: _Read, rule: AnswerRule, notes: Counter[str]) -> None:
    """Take the answers of a problem as the contest does. Raises UserError where what becomes of one is not judged."""
    solutions = []
    for solution in problem.solutions:
        read = rule.read(solution.answer)
        glimpses = tuple(replace(g, answer=rule.read(g.answer).answer) for g in solution.glimpses)
        right = solution.right and read.answer is not None
        solutions.append(replace(solution, answer=read.answer, right=right, glimpses=glimpses))
        if (note := _RULED.get(read.became)) is not None:
            notes[note] += 1
        if read.answer is None or read.answer == solution.answer or not solution.whole:
            continue
        if problem.expected is not None:
            problem.changed.add(read.answer)
        elif read.became == "reduced":
            raise UserError(
                f"problem {name}: the answer {solution.answer} of {solution.id} is {read.answer} in this contest, and "
                "what is expected is not known",
                remedy="give the column expected_answer",
            )
    problem.solutions = solutions


_RULED = {
    "reduced": "answers are taken modulo",
    "out_of_range": "answers out of the contest's range have no vote",
    "not_integer": "answers that are no whole number have no vote",
}


def _graded(read: Mapping[str, _Read], grade: GradeBatch, notes: Counter[str]) -> Iterator[StoredProblem]:
    """Return the problems. All pairs of answers that a vote may compare, and all answers that were found in unfinished
    solutions, are graded at once."""
    pairs: list[tuple[str | None, str | None]] = []
    partial_answers: dict[str, list[str]] = {}
    for name, problem in read.items():
        answers = [s.answer for s in problem.solutions if s.answer is not None]
        whole = {s.answer.strip() for s in problem.solutions if s.answer is not None and s.whole}
        seen = [*answers, *(g.answer for s in problem.solutions for g in s.glimpses if g.answer is not None)]
        partial_answers[name] = sorted({text for answer in seen if (text := answer.strip())} - whole)
        pairs += pairs_of(seen)
        if problem.expected is not None:
            pairs += [(answer, problem.expected) for answer in (*partial_answers[name], *sorted(problem.changed))]
    grades = dict(zip(pairs, grade(pairs), strict=True))
    compare: Compare = lambda a, b: grades[a, b]  # noqa: E731
    problems = []
    for name in sorted(read):
        problem, right = read[name], dict[str, bool]()
        for answer in partial_answers[name]:
            if problem.expected is not None:
                right[answer] = grades[answer, problem.expected].is_equal
        problem.solutions = [
            replace(s, right=grades[s.answer, problem.expected].is_equal) if s.answer in problem.changed else s
            for s in problem.solutions
        ]
        selections = _selections(name, problem, notes)
        problems.append(StoredProblem.make(name, problem.solutions, compare, glimpsed=right, selections=selections))
    return iter(problems)


def _selections(name: str, problem: _Read, notes: Counter[str]) -> list[StoredSelection]:
    places = {solution.id: place for place, solution in enumerate(problem.solutions)}
    selections = []
    for generation, selection in problem.selections:
        members = [parent for parent in generation.parents if parent != selection.group]
        if not members or any(member not in places for member in members):
            notes["selections among other solutions left out"] += 1
            continue
        if selection.chosen is not None and selection.chosen not in members:
            raise UserError(f"selection {generation.id} of problem {name} chose {selection.chosen}, no candidate of it")
        chosen = None if selection.chosen is None else places[selection.chosen]
        timing = Timing.of(generation)
        seconds = None if timing is None else timing.seconds
        candidates = frozenset(places[member] for member in members)
        selections.append(StoredSelection(candidates, chosen, generation.completion_tokens, seconds))
    return selections

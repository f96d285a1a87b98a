"""Problems of a benchmark that a training set holds: word for word, or so similar that somebody should look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Problem
from nemo_openmath.core.records.readers import read_rows
from nemo_openmath.core.records.store import part_files
from nemo_openmath.data.records.stored import RecordFolder
from nemo_openmath.synthesis.problems.benchmark_problems import BenchmarkProblems, stated
from nemo_openmath.synthesis.problems.retrievers import SURE, LexicalRetriever

NGRAM, THRESHOLD, STAND_OUT = 8, 0.1, 1.4
"""Those of ``problems.decontaminate``."""
_COLUMNS = ("problem", "question", "prompt", "input", "forum_post")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A problem of the training set that is, or may be, one of the benchmark."""

    benchmark: str
    """Id of the benchmark's problem."""
    training: str
    """The training problem's text, its beginning."""
    similarity: float
    exact: bool
    """Whether both state the same, sign by sign."""

    def line(self) -> str:
        """Return it for a reader."""
        how = "states the same" if self.exact else f"similarity {self.similarity:.2f}"
        return f"{self.benchmark}: {how}: {self.training}"


def training_problems(path: Path) -> Iterator[str]:
    """Yield the problems of a training set: a folder of records (problems, or what has their texts) or a file with a
    column of problems. Raises UserError where there are none."""
    if path.is_dir() and part_files(path):
        folder = RecordFolder(path)
        if folder.kind is not Problem:
            raise UserError("holds no problems", file=path, remedy="name the stage whose problems were trained on")
        for record in folder.records():
            yield str(record.fields["problem"])
        return
    if not path.exists():
        raise UserError("no such file or folder", file=path, remedy="check --against")
    for file, number, row in read_rows(path):
        text = next((row[column] for column in _COLUMNS if isinstance(row.get(column), str)), None)
        if text is None:
            remedy = f"give a file with a column {', '.join(_COLUMNS)}"
            raise UserError("no problem in this row", file=file, row=number, remedy=remedy)
        yield text


def overlaps(rows: Sequence[Mapping[str, Any]], training: Iterable[str]) -> Iterator[Overlap]:
    """Yield the training problems that state what a problem of the benchmark states, and those that the lexical
    retriever of decontamination finds as similar as it calls sure (0.5). A model has to say of these whether they are
    the same: ``problems.decontaminate`` asks one."""
    problems = [Problem.make(str(row["problem"])) for row in rows]
    names = {problem.id: str(row["id"]) for problem, row in zip(problems, rows, strict=True)}
    benchmark = BenchmarkProblems(("benchmark", problem) for problem in problems)
    texts = [problem.text for problem in benchmark.problems]
    if not texts:
        return
    retriever = LexicalRetriever(texts, ngram=NGRAM, threshold=THRESHOLD, stand_out=STAND_OUT)
    for text in training:
        shown = " ".join(text.split())[:160]
        if (same := benchmark.stating(stated(text))) is not None:
            yield Overlap(names[same.places[0][1]], shown, 1.0, exact=True)
            continue
        (near,) = retriever.nearest([text], 1)
        for similarity, number in near:
            if similarity >= SURE:
                yield Overlap(names[benchmark.problems[number].places[0][1]], shown, similarity, exact=False)

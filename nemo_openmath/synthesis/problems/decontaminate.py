"""Remove the problems that a benchmark holds (paper section 2.1, step 5): candidates by similarity, then a model.

A retriever proposes the most similar benchmark problems (retrievers.py), and the model says of each whether it is the
same problem. It is asked in both orders, since models favour what stands first. Nothing is dropped for its similarity.
Without asking goes what states the same as a benchmark problem, sign by sign (statement.py).

The paper says that an LLM compares, "following Yang et al. (2023)", and no more. Its reference implementation takes a
problem out as soon as one reply of any candidate and order is true (``strictness: any``); its recipe for this data set
shows one candidate in one order, that of OpenMathInstruct-2 five candidates in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from nemo_openmath.core.bounds import NonNegativeFloat, PositiveInt, Share
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.merging import read_merged
from nemo_openmath.core.records import Drop, Problem
from nemo_openmath.core.records.store import refuse_no_records
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.controls.cases import BENCHMARK, Case, DecontaminateCase
from nemo_openmath.synthesis.problems.benchmark_problems import BenchmarkProblem, BenchmarkProblems, stated
from nemo_openmath.synthesis.problems.classify import parse_verdict
from nemo_openmath.synthesis.problems.embedding_retriever import (
    EmbeddingRetriever,
    check_embedding,
    embedding_identity,
    load_encoder,
)
from nemo_openmath.synthesis.problems.prompted import OnePromptConfig, PromptedStage, Rejected
from nemo_openmath.synthesis.problems.retrievers import OWN, LexicalRetriever, Lookup, Retriever, look_up_with

NOTE = "decontamination"
"""Key in ``extra`` of a problem that was kept although a reply called it the same as a benchmark problem."""
WORD_FOR_WORD = "in the benchmark, word for word"
ALL_SAME = "in the benchmark, reworded"
"""Every verdict on a candidate is that it is the same problem: two, where both orders are asked."""
ONE_SAME = "in the benchmark, by one verdict of several"
DROPPED = (WORD_FOR_WORD, ALL_SAME, ONE_SAME)
"""The reasons of drops, from the surest on."""
_WHY = re.compile(r"^[\s*_`>#-]*why[\s*_`]*:[\s*_`]*(.+)$", re.I | re.M)
_REASON_LETTERS = 120
"""Most letters of a reply's reason in a drop."""


@dataclass(frozen=True)
class DecontaminateConfig(OnePromptConfig):
    """Settings of ``problems.decontaminate``."""

    candidates: PositiveInt = 5
    """At most so many benchmark problems, the most similar ones, are shown to the model. The paper names no number; its
    reference shows 1 for this data set and 5 for OpenMathInstruct-2."""
    threshold: Share = 0.1
    """Benchmark problems of a lower similarity (0 to 1) are not shown. The reference has no such bound. By n-grams the
    bound is 0.2 at least."""
    stand_out: NonNegativeFloat = 1.4
    """Of ``retriever: lexical``. A benchmark problem that is similar by its words is shown only if it is so many times
    as similar as the twentieth, or at least 0.5: of a clean problem, many are similar to the same degree. 0: all are
    shown."""
    retriever: Literal["lexical", "embedding"] = "lexical"
    """What proposes the candidates. ``lexical``: words, numbers, signs and n-grams of characters, without a model.
    ``embedding``: a sentence-transformers model, as in the reference; it wants the extra ``embedding``."""
    embedding_model: str = "multi-qa-MiniLM-L6-cos-v1"
    """The model of ``retriever: embedding``: its name on the Hugging Face hub, or the whole path of its folder. The
    default is the reference's."""
    ngram: PositiveInt = 8
    """Length of the n-grams that are compared, in characters."""
    orders: Literal["both", "one"] = "both"
    """``both``: the model is asked twice about a candidate, and each problem is once the first. ``one``: once, the
    problem before the candidate."""
    strictness: Literal["any", "both"] = "any"
    """What of two verdicts drops a problem. ``any``: one that says the same, as in the reference. ``both``: two that
    do; a problem with one such verdict is kept, and its ``extra`` says so."""
    constants: Literal["different", "same"] = "different"
    """What the model is told of a problem that differs from the candidate in its constants alone. ``different``: it is
    another problem. ``same``: it is the same, and is dropped (the template ``decontaminate-family``)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strictness == "both" and self.orders == "one":
            raise ValueError("strictness: both wants two verdicts; write orders: both")
        if self.embedding_model.startswith((".", "~")):
            raise ValueError(f"embedding_model: {self.embedding_model!r} is no whole path; begin it with /")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the model says of a problem and a candidate, in each order that was asked: whether they are the same, and
    why."""

    candidate: BenchmarkProblem
    similarity: float
    verdicts: tuple[bool, ...]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        verdicts = ", ".join("same" if same else "different" for same in self.verdicts)
        reasons = " / ".join(reason[:_REASON_LETTERS] for reason in self.reasons)
        return f"{self.candidate.name}; similarity {self.similarity:.2f}; {verdicts}; why: {reasons}"

    def to_json(self) -> dict[str, Any]:
        """Return what is kept of it beside a problem."""
        return {
            "benchmark": [list(place) for place in self.candidate.places],
            "similarity": round(self.similarity, 3),
            "same": list(self.verdicts),
            "why": list(self.reasons),
        }


Queued: TypeAlias = tuple[Problem, Lookup, int]
"""A problem, and where its candidates are looked up: its number among the texts of a lookup."""


class Decontaminate(PromptedStage[DecontaminateConfig, Problem | Queued]):
    """Drop the problems that are in a benchmark, word for word or reworded. Input ``benchmark`` takes any number of
    benchmarks. A drop names the problem's id and benchmark, the similarity, and each verdict with its reason.

    A problem about which a reply cannot be read is dropped, too: nobody knows whether it is in a benchmark.
    """

    kind = "problems.decontaminate"
    case = DecontaminateCase
    # 2: a sign counts. 3: words, embeddings, both orders, several benchmarks. 4: other candidates. 5: letters that look
    # alike are one for embeddings, too
    version = 5
    prompt = "decontaminate"
    Config = DecontaminateConfig
    ports = {"problems": "problems", "benchmark": "problems that must not be trained on: one benchmark or several"}
    takes = {"problems": "Problem", "benchmark": "Problem"}
    record = Problem

    def prompts(self) -> Mapping[str, Path | None]:
        name = "decontaminate" if self.config.constants == "different" else "decontaminate-family"
        return {name: self.config.prompt}

    def tells(self, case: Case) -> bool:
        """The shipped cases that are different differ in a constant, some of them, so they tell nothing where that
        makes no other problem."""
        return self.config.constants == "different" or (isinstance(case, DecontaminateCase) and case.same)

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        if self.config.retriever == "embedding":
            del settings["stand_out"]
            return settings | {"embedding_model": embedding_identity(self.config.embedding_model)}
        del settings["embedding_model"]
        return settings

    def check(self, inputs: Mapping[str, Any]) -> None:
        super().check(inputs)
        if self.config.retriever == "embedding":
            check_embedding(self.config.embedding_model)

    async def prepare(self, context: StageContext) -> None:
        await super().prepare(context)
        self._benchmarks = BenchmarkProblems(_read(context))
        if missing := self._benchmarks.without_text:
            context.metrics["benchmark_problems_without_text"] = len(missing)
            context.progress.log(f"{len(missing)} benchmark problems have no text to compare, such as {missing[0]}")
        if not self._benchmarks.problems:
            raise UserError("no problem of a benchmark has a text", remedy="give the problems that you evaluate with")
        self._retriever = self._make_retriever(context)

    def _make_retriever(self, context: StageContext) -> Retriever:
        texts, config = [problem.text for problem in self._benchmarks.problems], self.config
        if config.retriever == "lexical":
            return LexicalRetriever(texts, ngram=config.ngram, threshold=config.threshold, stand_out=config.stand_out)
        return EmbeddingRetriever(
            texts,
            encode=load_encoder(config.embedding_model),
            identity=embedding_identity(config.embedding_model),
            threshold=config.threshold,
            cache=context.output,
        )

    def units(self, context: StageContext) -> Iterable[tuple[str, Queued]]:
        problems = context.read("problems", Problem)
        while block := list(islice(problems, self._retriever.block)):
            lookup = Lookup(self._retriever, [problem.problem for problem in block], self.config.candidates)
            for number, problem in enumerate(block):
                yield problem.id, (problem, lookup, number)

    async def process(self, unit: Problem | Queued, context: StageContext) -> Result:
        problem, candidates, equal = await self._look_up(unit, context)
        if equal is not None:
            drop = Drop(WORD_FOR_WORD, f"{equal.name}: {problem.problem}")
            return Result(drops=[drop], asked=False)
        doubted, verdicts = [], 0
        for similarity, candidate in candidates:
            comparison = await self._compare(problem, candidate, similarity, context)
            if isinstance(comparison, Drop):
                return Result(drops=[comparison])
            verdicts += len(comparison.verdicts)
            same = sum(comparison.verdicts)
            evidence = f"{comparison}; {same} of {verdicts} verdicts; {problem.problem}"
            if same == len(comparison.verdicts):
                return Result(drops=[Drop(ALL_SAME, evidence)])
            if same and self.config.strictness == "any":
                return Result(drops=[Drop(ONE_SAME, evidence)])
            if same:
                doubted.append(comparison.to_json())
        kept = problem.with_(extra=problem.extra | {NOTE: doubted}) if doubted else problem
        return Result([kept], asked=bool(candidates))

    async def _look_up(
        self, unit: Problem | Queued, context: StageContext
    ) -> tuple[Problem, list[tuple[float, BenchmarkProblem]], BenchmarkProblem | None]:
        """Return a problem, the candidates to ask about, and the benchmark problem that states the same, if any. To a
        planted problem the benchmarks have one more, which no real problem is compared with."""
        problem = unit if isinstance(unit, Problem) else unit[0]
        statement, own = stated(problem.problem), None
        if (equal := self._benchmarks.stating(statement)) is not None:
            return problem, [], equal
        if isinstance(unit, Problem):
            own = BenchmarkProblem(problem.extra[BENCHMARK], (("controls", problem.id),))
            if stated(own.text) == statement:
                return problem, [], own
            near = await look_up_with(self._retriever, problem.problem, own.text, self.config.candidates)
        else:
            _, lookup, number = unit
            near = await lookup.nearest(number)
        return (
            problem,
            [(score, own if own and at == OWN else self._benchmarks.problems[at]) for score, at in near],
            None,
        )

    async def _compare(
        self, problem: Problem, candidate: BenchmarkProblem, similarity: float, context: StageContext
    ) -> Comparison | Drop:
        """Ask whether a problem and a candidate are the same. Return a drop where a reply cannot be read, unless
        another one drops the problem anyway. What can no longer change the outcome is not asked."""
        key = f"{problem.id}:{candidate.places[0][1]}"
        pairs = [(key, problem.problem, candidate.text), (f"{key}:exchanged", candidate.text, problem.problem)]
        verdicts, reasons, unread = [], [], None
        for name, first, second in pairs[: 2 if self.config.orders == "both" else 1]:
            same, reply = await self.question(context, name, parse_verdict, problem=first, candidate=second)
            if isinstance(same, Rejected):
                unread = unread or Drop(same.reason, f"{candidate.name}: {reply}")
                continue
            verdicts.append(same)
            reasons.append(reason_of(reply))
            if not same and self.config.strictness == "both":
                unread = None
                break
        if unread is not None and not (self.config.strictness == "any" and any(verdicts)):
            return unread
        return Comparison(candidate, similarity, tuple(verdicts), tuple(reasons))


def reason_of(reply: str) -> str:
    """Return the line of a reply that says why; empty where there is none."""
    lines = _WHY.findall(reply)
    return " ".join(lines[-1].split()) if lines else ""


def _read(context: StageContext) -> Iterator[tuple[str, Problem]]:
    """Yield the problems of all benchmarks with the name of theirs: of the stage that read it and, where that read
    several files, of the file."""
    for folder in context.paths("benchmark"):
        refuse_no_records(folder)
        number = 0
        for problem in read_merged([folder], Problem, context.services.vote):
            number += 1
            source = Path(problem.source).stem if problem.source else ""
            yield f"{folder.name}/{source}" if source and source != folder.name else folder.name, problem
        if not number:
            remedy = "look at its drops (openmath recipe status), or leave the benchmark out"
            raise UserError("the benchmark holds no problem", file=folder, remedy=remedy)

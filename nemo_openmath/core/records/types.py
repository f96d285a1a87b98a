"""Record types. Immutable; each names its parents; ``id`` is a function of content.

A later stage that learns something about a record (its answer, its verdict) writes a new version under the same
id: what the id is made of never changes. Fields that we do not know are kept in ``extra`` and travel along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Self

import orjson

from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records.bodies import TranscriptData, loaded
from nemo_openmath.core.records.ids import content_id


class Mode(StrEnum):
    """How a generation was made."""

    COT = "cot"  # chain of thought
    TIR = "tir"  # tool-integrated reasoning: code is run in between
    GENSELECT = "genselect"  # one of several solutions was selected
    COMPETITION = "competition"  # the one answer that was submitted, from many solutions


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The base of all records. Raises ValueError naming an unknown value of an enum."""

    id: str
    parents: tuple[str, ...] = ()
    """Ids of what it was made from."""
    extra: dict[str, Any] = field(default_factory=dict, hash=False)
    """Fields that we do not know. They travel along."""

    tuples: ClassVar[tuple[str, ...]] = ("parents",)
    enums: ClassVar[dict[str, type[StrEnum]]] = {}
    """Fields that hold a member of an enum. Text is taken for the member of that value."""
    owner: ClassVar[str] = "id"
    """The field by which records are divided among the jobs of an array: all that belongs to a problem is together."""

    def __post_init__(self) -> None:
        for name, kind in self.enums.items():
            value = getattr(self, name)
            if type(value) is kind or (value is None and self.__dataclass_fields__[name].default is None):
                continue
            object.__setattr__(self, name, _member(kind, value, name))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """Read a row of our own files. Raises ValueError naming a missing or unknown field."""
        if unknown := row.keys() - cls.__dataclass_fields__.keys():
            raise ValueError(f"not a {cls.__name__}: unknown field {sorted(unknown)[0]!r}")
        try:
            tuples = {name: tuple(row[name]) for name in cls.tuples if name in row}
            return cls(**row | tuples)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a {cls.__name__}: {error}") from error

    def with_(self, **changes: Any) -> Self:
        """Return a new version under the same id."""
        return replace(self, **changes)

    def tally(self) -> str:
        """Return under what a record is counted in its folder's tally; "" where its type keeps none."""
        return ""


def _member(kind: type[StrEnum], value: str, name: str) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} {value!r} is unknown; known: {', '.join(kind)}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread(Record):
    """A forum thread, with the field names of the published raw data."""

    forum_post: str
    forum_discussions: str = ""

    @classmethod
    def make(cls, forum_post: str, forum_discussions: str = "", **extra: Any) -> Thread:
        """Return a thread whose id is made from its texts."""
        return cls(
            id=content_id("thread", forum_post, forum_discussions),
            forum_post=forum_post,
            forum_discussions=forum_discussions,
            extra=extra,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem(Record):
    """A problem, with its answer where one is known."""

    problem: str
    expected_answer: str | None = None
    problem_type: str | None = None
    """As published: has_answer_extracted, no_answer_extracted, converted_proof."""
    category: str | None = None
    """As classified: answer, proof, multiple-choice, binary, invalid."""
    source: str = ""
    pass_rate: float | None = None
    """Share of its solutions that are correct."""

    @classmethod
    def make(cls, problem: str, **values: Any) -> Problem:
        """Return a problem whose id is made from the text alone, with runs of white space counted as one."""
        return cls(id=content_id("problem", " ".join(problem.split())), problem=problem, **values)


UNTRIED = (Finish.CONTEXT, Finish.REFUSED)
NOT_TRIED = "the model could not be asked"  # the reason of the verdict of such a generation, which is unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation(Record):
    """One sampled solution (or selection). The id is known before anything is generated."""

    problem_id: str
    mode: Mode
    model: str
    sample: int
    transcript: TranscriptData = field(hash=False)
    """JSON form of ``chat.Transcript``, or where it lies (bodies.py)."""
    finish: Finish
    expected_answer: str | None = None
    predicted_answer: str | None = None
    verdict: Verdict | None = None
    """None before judging."""
    verdict_reason: str | None = None
    prompt_tokens: int = 0
    """Tokens of the context at the first generated token."""
    completion_tokens: int = 0
    """Tokens that the model generated."""
    runner_tokens: int = 0
    """Tokens that the sandbox's output added."""
    code_calls: int = 0
    """Blocks of code that were run."""
    budget: int | None = None
    """Executions of code that the prompt allowed; None without code."""
    thinks: bool | None = None
    """Whether its text has tags of thinking; None where nobody looked."""

    enums: ClassVar[dict[str, type[StrEnum]]] = {"mode": Mode, "finish": Finish, "verdict": Verdict}
    owner: ClassVar[str] = "problem_id"

    @staticmethod
    def make_id(
        problem_id: str, mode: Mode, model: str, prompt: str, sampling: dict[str, Any], seed: int, sample: int
    ) -> str:
        """Return the id of a sample. ``prompt``: digest of the template; ``sampling``: what shapes the draw; ``seed``:
        the run's."""
        return content_id("generation", problem_id, mode, model, prompt, sampling, seed, sample)

    def tally(self) -> str:
        return orjson.dumps([*Tallied.of(self)]).decode()

    @property
    def correct(self) -> bool:
        """Whether its answer was judged equal to the expected one."""
        return self.verdict is Verdict.EQUAL

    @property
    def finished(self) -> bool:
        """Whether the model ended it by itself."""
        return self.finish is Finish.STOP

    @property
    def tried(self) -> bool:
        """Whether the model could be asked. A generation that was not tried says nothing of the problem or the
        model."""
        return self.finish not in UNTRIED


class Tallied(NamedTuple):
    """What generations are counted by, in the tally of their folder."""

    model: str
    mode: str
    finish: str
    verdict: str | None
    thinks: bool | None
    called: bool
    """Whether code was run."""

    @classmethod
    def of(cls, generation: Generation) -> Tallied:
        """Return under what a generation is counted."""
        g = generation
        return cls(g.model, g.mode, g.finish, g.verdict, g.thinks, g.code_calls > 0)

    @classmethod
    def read(cls, tally: Mapping[str, int]) -> Iterator[tuple[Tallied, int]]:
        """Yield what a tally counts, and how many there are of it."""
        for name, count in tally.items():
            yield cls(*orjson.loads(name)), count


@dataclass(frozen=True, slots=True, kw_only=True)
class Group(Record):
    """Candidates of one problem for GenSelect (paper section 4.2), in the order shown to the model."""

    problem_id: str
    problem: str
    members: tuple[str, ...]
    """Ids of the candidates' generations."""
    summaries: tuple[str, ...]
    answers: tuple[str | None, ...]
    correct: tuple[bool, ...] = ()
    """Whether each candidate is correct; empty where the expected answer is not to be used."""
    expected_answer: str | None = None

    tuples: ClassVar[tuple[str, ...]] = ("parents", "members", "summaries", "answers", "correct")
    owner: ClassVar[str] = "problem_id"

    @classmethod
    def make(
        cls,
        problem_id: str,
        members: tuple[str, ...],
        *,
        k: int,
        turn: int = 0,
        mode: Mode | None = None,
        untried: Finish | None = None,
        **values: Any,
    ) -> Group:
        """Return a group whose id is made from its members. ``turn`` tells groups of the same members apart where every
        problem gets several (inference). For ``k``, ``mode`` and ``untried`` see the properties."""
        name = content_id("group", problem_id, members, turn)
        extra: dict[str, Any] = {"k": k}
        extra |= {key: value for key, value in (("mode", mode), ("untried", untried)) if value is not None}
        return cls(id=name, problem_id=problem_id, members=members, parents=members, extra=extra, **values)

    @property
    def k(self) -> int:
        """How many candidates were asked for; there are fewer members where a problem has fewer solutions. Raises
        UserError where the group does not say it."""
        if type(k := self.extra.get("k")) is not int:
            raise UserError(f"group {self.id} does not say how many candidates were asked for (k is {k!r})")
        return k

    @property
    def mode(self) -> Mode | None:
        """How its candidates were made; None of a group that does not say it."""
        return Mode(self.extra["mode"]) if "mode" in self.extra else None

    @property
    def untried(self) -> Finish | None:
        """Why the problem has no solution to choose: the model could not be asked for one. None where it could."""
        return Finish(self.extra["untried"]) if "untried" in self.extra else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SftRow(Record):
    """One training sample: a transcript whose model spans are trained on."""

    problem_id: str
    mode: Mode
    transcript: TranscriptData = field(hash=False)
    """JSON form of ``chat.Transcript``, or where it lies (bodies.py)."""
    expected_answer: str | None = None
    problem_source: str = ""
    pass_rate: float | None = None

    enums: ClassVar[dict[str, type[StrEnum]]] = {"mode": Mode}
    owner: ClassVar[str] = "problem_id"

    @classmethod
    def make(cls, source: Record, *, problem_id: str, mode: Mode, transcript: TranscriptData, **values: Any) -> SftRow:
        """Return a row whose id is made from its source and its texts."""
        told = loaded(transcript)
        return cls(
            id=content_id("row", source.id, mode, told["messages"], [p["text"] for p in told["pieces"]]),
            parents=(source.id,),
            problem_id=problem_id,
            mode=mode,
            transcript=transcript,
            **values,
        )

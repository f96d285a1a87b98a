"""What a selection, a submission and a timed solution say beyond the fields of a generation.

All are generations. What is theirs alone lies in ``extra``, under the keys that are written here, and nothing else
reads or writes these keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records.types import Generation, Mode


@dataclass(frozen=True, slots=True)
class Selection:
    """What a generation of mode genselect chose, and among how many."""

    group: str
    """Id of the group of candidates."""
    chosen: str | None
    """Id of the chosen generation; None where the judgment named none."""
    candidates: int
    """How many candidates were asked for. A group holds fewer where a problem has fewer solutions."""
    turn: int
    """Number of the selection among those of its problem."""
    mode: Mode | None = None
    """How the candidates were made; None of a selection that does not say it."""
    prompt: str | None = None
    """Digest of the template that was asked; None of a selection that does not say it."""

    def to_extra(self) -> dict[str, Any]:
        """Return the ``extra`` of the generation."""
        extra: dict[str, Any] = {"group": self.group, "chosen": self.chosen, "k": self.candidates, "round": self.turn}
        extra |= {} if self.mode is None else {"of": str(self.mode)}
        return extra | ({} if self.prompt is None else {"asked": {"prompt": self.prompt}})

    @staticmethod
    def mode_in(extra: dict[str, Any]) -> Mode | None:
        """Return how the candidates were made, as the ``extra`` of a selection says; None where it does not."""
        return Mode(extra["of"]) if "of" in extra else None

    @classmethod
    def of(cls, generation: Generation) -> Selection:
        """Read a selection. Raises UserError naming the record and the key that is missing or no such value."""
        read = _Reader(generation, "selection", "does not say what it chose of how many")
        chosen = None if read.value("chosen") is None else read.of_type("chosen", str)
        extra = generation.extra
        mode = cls.mode_in(extra)
        prompt = asked.get("prompt") if isinstance(asked := extra.get("asked"), dict) else None
        return cls(read.of_type("group", str), chosen, read.of_type("k", int), read.of_type("round", int), mode, prompt)


@dataclass(frozen=True, slots=True)
class Submission:
    """How the answer of a competition came about."""

    votes: int
    """Solutions that gave the submitted answer."""
    finished: int
    """Solutions that had finished by then."""
    seconds: float
    """Time from the problem to its answer."""
    spent: float | None = None
    """By what the contest's clock went on for it: ``seconds``, and what was done since the answer before it. None of a
    submission that does not say it."""
    allowed: float | None = None
    """Seconds that it was allowed; None likewise."""
    details: dict[str, Any] = field(default_factory=dict)
    """How the vote went, for a reader: why sampling ended, weights, the runner-up, what was lost."""

    def to_extra(self) -> dict[str, Any]:
        """Return the ``extra`` of the generation."""
        extra: dict[str, Any] = {"votes": self.votes, "finished": self.finished, "seconds": round(self.seconds, 3)}
        for name, value in (("spent", self.spent), ("allowed", self.allowed)):
            extra |= {} if value is None else {name: round(value, 3)}
        return extra | ({"vote": self.details} if self.details else {})

    @classmethod
    def of(cls, generation: Generation) -> Submission:
        """Read a submission. Raises UserError naming the record and the key that is missing or no such value."""
        read = _Reader(generation, "submission", "does not say how it came about")
        seconds = read.of_type("seconds", int | float)
        spent, allowed = (
            float(read.of_type(name, int | float)) if name in generation.extra else None
            for name in ("spent", "allowed")
        )
        details = read.of_type("vote", dict) if "vote" in generation.extra else {}
        return cls(read.of_type("votes", int), read.of_type("finished", int), float(seconds), spent, allowed, details)


@dataclass(frozen=True, slots=True)
class Timing:
    """When a solution was made, turn by turn as a replay needs it, and how sure the model was of its answer."""

    points: tuple[tuple[float, int], ...]
    """(seconds since the solution began, tokens that the model had written by then), at the beginning and the end of
    each of the model's turns, the last one at the solution's end. Between a turn's end and the next one's beginning
    code ran. Within a turn a replay goes from point to point in a straight line."""
    began: float = 0.0
    """Seconds from the problem's beginning to the solution's: above 0 of later rounds."""
    code_seconds: float = 0.0
    answer_surprise: float | None = None
    """Mean negative log-probability of the tokens of the answer, in nats; None where log-probabilities were not kept,
    or there is no answer."""
    tail_surprise: float | None = None
    """The same of the last ``tail_tokens`` tokens that the model wrote."""
    tail_tokens: int = 0
    cut: bool = False
    """Whether it was cut off while it ran, so that it says nothing of how long it would have taken."""

    def to_extra(self) -> dict[str, Any]:
        """Return the ``extra`` of the generation."""
        note: dict[str, Any] = {
            "points": [[round(seconds, 3), tokens] for seconds, tokens in self.points],
            "began": round(self.began, 3),
            "code_seconds": round(self.code_seconds, 3),
        }
        for name in ("answer_surprise", "tail_surprise"):
            if (value := getattr(self, name)) is not None:
                note[name] = round(value, 5)
        note |= {"tail_tokens": self.tail_tokens} if self.tail_surprise is not None else {}
        return {"timing": note | ({"cut": True} if self.cut else {})}

    @property
    def seconds(self) -> float:
        """Seconds from the solution's beginning to its end."""
        return self.points[-1][0] if self.points else 0.0

    @classmethod
    def of(cls, generation: Generation) -> Timing | None:
        """Read a timing; None of a generation that has none. Raises UserError naming the record where it is damaged."""
        note = generation.extra.get("timing")
        if note is None:
            return None
        try:
            points = tuple((float(seconds), int(tokens)) for seconds, tokens in note["points"])
            seconds, tokens = [p[0] for p in points], [p[1] for p in points]
            if not points or seconds != sorted(seconds) or tokens != sorted(tokens):
                raise ValueError("its points do not ascend")
            surprises = {k: float(note[k]) for k in ("answer_surprise", "tail_surprise") if k in note}
            return cls(
                points,
                float(note["began"]),
                float(note["code_seconds"]),
                **surprises,
                tail_tokens=int(note.get("tail_tokens", 0)),
                cut=note.get("cut") is True,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"generation {generation.id} has a damaged timing ({error!r})",
                remedy="remove the folder of the stage that wrote it and run that stage again",
            ) from error


@dataclass(frozen=True, slots=True)
class _Reader:
    generation: Generation
    what: str
    problem: str

    def value(self, name: str) -> Any:
        if name not in self.generation.extra:
            raise self._error(f"no {name!r}")
        return self.generation.extra[name]

    def of_type(self, name: str, kind: Any) -> Any:
        value = self.value(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self._error(f"{name} is {value!r}")
        return value

    def _error(self, detail: str) -> UserError:
        return UserError(
            f"{self.what} {self.generation.id} {self.problem} ({detail})",
            remedy="remove the folder of the stage that wrote it and run that stage again",
        )

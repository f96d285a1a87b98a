"""What a selection and a submission say beyond the fields of a generation.

Both are generations. What is theirs alone lies in ``extra``, under the keys that are written here, and nothing else
reads or writes these keys.
"""

from __future__ import annotations

from dataclasses import dataclass
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

    @classmethod
    def of(cls, generation: Generation) -> Selection:
        """Read a selection. Raises UserError naming the record and the key that is missing or no such value."""
        read = _Reader(generation, "selection", "does not say what it chose of how many")
        chosen = None if read.value("chosen") is None else read.of_type("chosen", str)
        extra = generation.extra
        mode = Mode(read.of_type("of", str)) if "of" in extra else None
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

    def to_extra(self) -> dict[str, Any]:
        """Return the ``extra`` of the generation."""
        return {"votes": self.votes, "finished": self.finished, "seconds": round(self.seconds, 3)}

    @classmethod
    def of(cls, generation: Generation) -> Submission:
        """Read a submission. Raises UserError naming the record and the key that is missing or no such value."""
        read = _Reader(generation, "submission", "does not say how it came about")
        seconds = read.of_type("seconds", int | float)
        return cls(read.of_type("votes", int), read.of_type("finished", int), float(seconds))


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

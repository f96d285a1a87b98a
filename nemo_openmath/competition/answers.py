"""Which answers a contest takes: whole numbers in a range, some of them modulo a number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from nemo_openmath.core.bounds import AnyInt, PositiveInt

_INTEGER = re.compile(r"[-+]?\d+")
_TEX = re.compile(r"\\[,;:! ]|\\text\{\s*\}|[\s$]|\{,\}")
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+")


@dataclass(frozen=True)
class AnswerRule:
    """What may be submitted. AIMO-2 takes 0 to 999 and asks for other answers modulo 1000; AIMO-3 takes 0 to 99999."""

    integers: bool = False
    """Whether an answer has to be a whole number. One that is none has no vote."""
    least: AnyInt = 0
    """With ``integers``: the smallest answer."""
    most: AnyInt | None = None
    """With ``integers``: the largest answer; null: there is none."""
    modulo: PositiveInt | None = None
    """With ``integers``: answers outside of the range are taken modulo this number; null: they have no vote."""

    def __post_init__(self) -> None:
        if not self.integers and (self.most is not None or self.modulo is not None):
            raise ValueError("most, modulo: of whole numbers alone; set integers: true")
        if self.most is not None and self.most < self.least:
            raise ValueError("most: choose it not below least")
        if self.modulo is not None and (self.least > 0 or (self.most is not None and self.most < self.modulo - 1)):
            raise ValueError("modulo: what is left of a division, 0 to modulo - 1, has to lie in the range")

    def read(self, answer: str | None) -> ReadAnswer:
        """Return the answer as it is submitted. Only the writing of a number is read, nothing is computed: 2^5 is no
        whole number here."""
        if answer is None:
            return ReadAnswer(None, "none")
        if not self.integers:
            return ReadAnswer(answer, "kept")
        text = _TEX.sub("", answer)
        text = text.replace(",", "") if _GROUPED.fullmatch(text) else text
        whole, _, zeros = text.partition(".")
        if not _INTEGER.fullmatch(whole) or zeros.strip("0") or len(whole) > 4000:
            return ReadAnswer(None, "not_integer")
        number = int(whole)
        if self.least <= number and (self.most is None or number <= self.most):
            return ReadAnswer(str(number), "kept")
        if self.modulo is None:
            return ReadAnswer(None, "out_of_range")
        return ReadAnswer(str(number % self.modulo), "reduced")


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """An answer as a contest takes it, and what became of the one that was written."""

    answer: str | None
    became: Literal["kept", "reduced", "out_of_range", "not_integer", "none"]

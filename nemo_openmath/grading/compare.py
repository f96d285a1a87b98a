"""Are two answers the same?"""

from __future__ import annotations

from nemo_openmath.grading import plain
from nemo_openmath.grading.verdict import Grade, unknown


def compare(predicted: str | None, expected: str | None, *, take_modulo: int | None = None) -> Grade:
    """Compare a predicted answer with the expected one; never raises. See the package docstring for the rules.

    ``take_modulo``: integers count as equal when they are so modulo this number.
    """
    decided = plain.decide(predicted, expected)
    if decided is None or (take_modulo and not decided.is_equal and predicted and expected):
        if take_modulo and predicted and expected:
            try:
                same = (int(predicted) - int(expected)) % take_modulo == 0
            except ValueError:
                same = False
            if same:
                return plain.SAME_NUMBER
        return decided or unknown("not plainly numbers")
    return decided

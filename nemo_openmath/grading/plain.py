r"""The fast path: answers that are plainly numbers, decided by integer arithmetic in about a microsecond.

Most contest answers are short integers; ``decide`` settles them, plain decimals and fractions, and identical
strings, and returns None for everything that needs the parser.
"""

from __future__ import annotations

import math
import re

from nemo_openmath.core.grader import Grade, equal, not_equal, unknown

_INTEGER = re.compile(r"\$?\s*+([+-]?)(?=[0-9])0*+([0-9]*+)\s*+\$?")
_NUMBER = re.compile(
    r"\$?\s*([+-]?)(?:"
    r"([0-9]{1,60})(?:\.([0-9]{0,60}))?(?:/([0-9]{1,60}))?"
    r"|([1-9][0-9]{0,2}(?:,[0-9]{3}){1,12})(?:\.([0-9]{1,60}))?"
    r"|\\[dt]?frac\s*\{\s*([+-]?)([0-9]{1,60})\s*\}\s*\{\s*([0-9]{1,60})\s*\}"
    r"|\.([0-9]{1,60})"
    r")\s*\$?"
)

MIN_ROUNDED_DIGITS = 3  # a decimal of fewer digits is never a rounding of something else
MANY = 1000

SAME = equal("identical")
SAME_NUMBER = equal("same number")
OTHER_NUMBER = not_equal("different numbers")
MISSING = not_equal("no predicted answer")
NO_EXPECTED = unknown("no expected answer")


def decide(predicted: str | None, expected: str | None) -> Grade | None:
    """Return the grade of a pair of plain numbers or identical strings; None: the parser has to look."""
    if expected is None or not (e := expected.strip()):
        return NO_EXPECTED
    if predicted is None or not (p := predicted.strip()):
        return MISSING
    if p == e:
        return SAME
    if (a := _INTEGER.fullmatch(p)) is not None and (b := _INTEGER.fullmatch(e)) is not None:
        x, y = a[2], b[2]  # without leading zeros; "" is zero
        same = x == y and (not x or (a[1] == "-") == (b[1] == "-"))
        return SAME_NUMBER if same else OTHER_NUMBER
    left, right = _read(p), _read(e)
    if left is None or right is None:
        return None
    a_num, a_den, a_digits = left
    b_num, b_den, b_digits = right
    if a_num * b_den == b_num * a_den:
        return SAME_NUMBER
    # A long decimal may be a rounding of the other number, and 1,234 may be a list: the rules are in constants.py.
    return OTHER_NUMBER if max(a_digits, b_digits) < MIN_ROUNDED_DIGITS else None


def value(text: str) -> tuple[int, int] | None:
    """Return numerator and denominator in lowest terms of a plain number that is no rounding; else None. Two texts with
    values are equal exactly where their values are."""
    read = _read(text.strip())
    if read is None or read[2] >= MIN_ROUNDED_DIGITS:
        return None
    divisor = math.gcd(read[0], read[1])
    return read[0] // divisor, read[1] // divisor


def _read(text: str) -> tuple[int, int, int] | None:
    """Return numerator, denominator (> 0) and the digits of a decimal (0 of an exact number, MANY where the text has
    another reading)."""
    m = _NUMBER.fullmatch(text)
    if m is None:
        return None
    sign = -1 if m[1] == "-" else 1
    if m[2] is not None:
        if m[4] is not None:
            if m[3] is not None or (den := int(m[4])) == 0:
                return None
            return sign * int(m[2]), den, 0
        digits = m[3] or ""
        return sign * int(m[2] + digits), 10 ** len(digits), len(digits) and len(m[2] + digits)
    if m[5] is not None:
        digits = m[6] or ""
        return sign * int(m[5].replace(",", "") + digits), 10 ** len(digits), MANY
    if m[8] is not None:
        if (den := int(m[9])) == 0:
            return None
        return (-sign if m[7] == "-" else sign) * int(m[8]), den, 0
    return sign * int(m[10]), 10 ** len(m[10]), len(m[10])

r"""Answers: extraction, equivalence with a reason, isolated grading, majority.

``compare`` gives one of four verdicts. The rules that are conventions and not mathematics:

- Decimals are exact. A decimal of six or more significant digits also equals the non-terminating number (1/3, pi)
  that rounds to it; with three to five digits that is unknown. A terminating number is never rounded to.
- A unit, a currency or a percent sign may be left out on one side (50% is 50 and 1/2; 0.5% is not 1/2). Two units
  must agree after conversion. Degrees are angles: 30 degrees is pi/6.
- A list without brackets is unordered unless it repeats values; a tuple is ordered; against each other they are
  equal in the same order and unknown otherwise. x = 1, y = 2 is (1, 2).
- "x = 5" is "5"; a polynomial equation equals the list of its roots; equations that are multiples are equal.
- The same value of two names is unknown: x = 5 and y = 5, P(A) = 1/3 and P(B) = 1/3. f(t) = t + 1 is f(x) = x + 1.
- "m + n = 70" is 70 (letters that are no coordinates); "AB = 5" and "A(1, 2)" are 5 and (1, 2). 2 hours 30 minutes
  is 2.5 hours. Dots in a list stand only for the same dots. C_n^k is n choose k.
- Unknown, for both readings are in use: 0,5 against 0.5; digits of a base against digits without one; 5 m against 5;
  letters in another case; ABC against A, B, C; a name under a bar against the bare name.
- 3\frac{1}{2} is three and a half; 1,234 is a number (in brackets a pair); \sqrt[3]{-8} is -2; \log is unknown where
  its base decides; what stands behind a slash or a function is unknown where its reach decides (1/2x).
- (B) 12 is B and is 12; a bare letter against a value is unknown. "Yes" is not a number.
- A vote groups answers by one equivalence that no order of the votes changes: see majority.py.
- Functions of symbols are compared on their real domain at random points; renamed symbols are unknown.
"""

from nemo_openmath.core.grader import Grade, Majority, Verdict
from nemo_openmath.grading.compare import compare, is_mathematics
from nemo_openmath.grading.extraction import Extraction, extract_answer
from nemo_openmath.grading.file import grade_file, show_disagreements
from nemo_openmath.grading.majority import majority
from nemo_openmath.grading.pool import GradingPool

__all__ = [
    "Extraction",
    "Grade",
    "GradingPool",
    "Majority",
    "Verdict",
    "compare",
    "extract_answer",
    "grade_file",
    "is_mathematics",
    "majority",
    "show_disagreements",
]

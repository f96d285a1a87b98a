"""Answer extraction, equivalence and majority."""

from nemo_openmath.grading.compare import compare
from nemo_openmath.grading.extraction import Extraction, extract_answer
from nemo_openmath.grading.majority import Majority, majority
from nemo_openmath.grading.pool import GradingPool
from nemo_openmath.grading.verdict import Grade, Verdict

__all__ = ["Extraction", "Grade", "GradingPool", "Majority", "Verdict", "compare", "extract_answer", "majority"]

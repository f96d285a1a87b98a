"""What a benchmark says: accuracy, votes and selection with 95% intervals, and paired differences."""

from nemo_openmath.evaluation.estimators import majority_at_k, pass_at_k
from nemo_openmath.evaluation.intervals import (
    amount_interval,
    mean_interval,
    share_difference_interval,
    share_interval,
)
from nemo_openmath.evaluation.metrics import MetricRow, ProblemScores, evaluate, score, summarise
from nemo_openmath.evaluation.paired import Pair, PairedRow, paired_difference

__all__ = [
    "MetricRow",
    "Pair",
    "PairedRow",
    "ProblemScores",
    "amount_interval",
    "evaluate",
    "majority_at_k",
    "mean_interval",
    "paired_difference",
    "pass_at_k",
    "score",
    "share_difference_interval",
    "share_interval",
    "summarise",
]

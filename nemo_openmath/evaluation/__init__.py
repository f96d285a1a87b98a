"""Measure models on a benchmark: accuracy, votes and selection with 95% intervals, and paired differences.

metrics.py      graded generations -> scores of each problem -> rows of a table
estimators.py   pass@k and maj@k without bias
intervals.py    95% intervals over problems
paired.py       two models on the same problems
share.py        the share of right answers among rows, for a line on the console
stage.py        the stages ``evaluation.metrics`` and ``evaluation.compare``
two_models.py      how far two models agree that were asked the same
problem_truth.py   known problems of labelled threads, found again
problem_stages.py  the stage ``evaluation.problems``: precision and recall of the stages that made a problem set
sequential/     two models, sampled until it is decided which is better; what that takes
rescore/        stored generations under another grader, judge, token limit or subset
benchmarks/     known benchmarks, and the file of one
paper_tables.py the shapes of the paper's tables
reports/        pages, pictures and tables of a run
"""

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

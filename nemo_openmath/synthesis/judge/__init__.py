"""Let models judge the pairs of answers that the symbolic grader cannot decide, and measure how far the two agree.

judge.py       judges, their votes and the majority
stage.py       the stage ``judging.judge``
agreement.py   counts of both verdicts, and the pairs on which they differ

The prompt is ``judge`` in chat/prompts; a file of the user may replace it.
"""

from nemo_openmath.synthesis.judge.agreement import Agreement, JudgedPair
from nemo_openmath.synthesis.judge.judge import Judge, Judgement, JudgeSettings, Question, judge
from nemo_openmath.synthesis.judge.stage import JudgeAnswers

__all__ = [
    "Agreement",
    "Judge",
    "JudgeAnswers",
    "JudgeSettings",
    "JudgedPair",
    "Judgement",
    "Question",
    "judge",
]

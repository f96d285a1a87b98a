"""LLM judges for the pairs that symbolic grading cannot tell, and their agreement with it.

Importing this registers the stage ``judging.judge``. Prompt: ``judge`` in transcripts/prompts, replaceable.
"""

from nemo_openmath.grading.judgement import parse_judgement
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
    "parse_judgement",
]

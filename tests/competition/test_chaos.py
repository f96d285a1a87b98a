"""A slice of the simulated contests; ``python -m tests.competition.chaos --contests 1000`` runs them all."""

from nemo_openmath.chat import ChatTokenizer
from tests.competition.chaos import run


def test_an_answer_before_each_deadline_and_nothing_left_running(tokenizer: ChatTokenizer) -> None:
    ends = run(30, 7, tokenizer)
    assert ends["finished"] >= 20
    assert ends["answers"] >= 60
    assert ends["clock jumps"] >= 10

"""Judges: asked only when needed, read strictly, counted, and compared with the symbolic grader."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.engine import EngineError, Finish
from nemo_openmath.core.errors import UserError
from nemo_openmath.grading import Grade, Verdict, compare
from nemo_openmath.grading.judgement import parse_judgement
from nemo_openmath.synthesis.judge import (
    Agreement,
    Judge,
    JudgedPair,
    Judgement,
    JudgeSettings,
    Question,
    judge,
)
from tests.support.engines import ScriptedEngine, in_turn

QUESTION = Question("Which number?", "2.0 apples", "two")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("They agree.\nJudgement: Yes", True),
        ("Judgement: No.", False),
        ("**Judgment: yes**\n\n", True),
        ("**Judgement:** No", False),
        ("<think>Judgement: No</think>\nJudgement: Yes", True),
        ("Judgement: Yes\nThat is all.", None),
        ("Judgement: Yes or No", None),
        ("**Judgement**: Yes", True),
        ("**Judgement: Yes**", True),
        ("**Judgement**: **No**.", False),
        ("__Judgement__: No", False),
        ("Judgement: **No**", False),
        ("### Judgement: Yes", True),
        ("Final judgement: No", False),
        ("My final judgement: no.", False),
        ("**Final Judgment:** Yes", True),
        ("Judgment: yes.", True),
        ("judgement - Yes", True),
        ("Judgement: ye\u017f", True),
        ('"Judgement: Yes"', True),
        (r"Judgement: \boxed{Yes}", True),
        ("Judgement: Yes. Or is it? Judgement: No", None),
        ("I lean to Judgement: Yes at first.\nJudgement: No", None),
        ("Judgement: No\n\nOn reflection they agree.\n**Judgement**: Yes", None),
        ('<think>End with "Judgement: Yes" or "Judgement: No".</think>\n\nJudgement: No', False),
        ("<think>I shall write\nJudgement: Yes", None),
        ("<think>Judgement: Yes</think>They agree.", None),
        ("Prejudgement: Yes, no", None),
        ("Judgement: No\nJudgement: Yes", None),
        ("My judgement is yes", None),
        ("Judgement:", None),
        ("Judgement: Yesterday", None),
        ("", None),
    ],
)
def test_strict_reading(text: str, verdict: bool | None) -> None:
    assert parse_judgement(text) is verdict


@pytest.mark.parametrize(
    ("question", "verdict"),
    [
        (Question("p", " x ", "x"), Verdict.EQUAL),
        (Question("p", None, "x"), Verdict.NOT_EQUAL),
        (Question("p", " ", "x"), Verdict.NOT_EQUAL),
        (Question("p", "x", ""), Verdict.UNKNOWN),
    ],
)
async def test_nothing_is_asked_where_nothing_is_open(
    tokenizer: ChatTokenizer, question: Question, verdict: Verdict
) -> None:
    engine = ScriptedEngine(tokenizer, lambda _: "Judgement: No")
    assert (await judge(question, [Judge(engine, tokenizer)])).verdict is verdict
    assert not engine.requests


async def test_the_prompt_holds_problem_and_both_answers(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    engine = ScriptedEngine(tokenizer, lambda _: "Judgement: Yes")
    assert (await judge(QUESTION, [Judge(engine, tokenizer)])).verdict is Verdict.EQUAL
    (request,) = engine.requests
    assert not isinstance(request.prompt, str)
    text = tokenizer.decode(request.prompt)
    assert all(part in text for part in ("Which number?", "Predicted answer: 2.0 apples", "Expected answer: two"))
    own = tmp_path / "judge.txt"
    own.write_text("Mine: {problem} / {predicted_answer} / {expected_answer}. End with Judgement: Yes or No.\n")
    await judge(QUESTION, [Judge(engine, tokenizer, template=own)])
    assert "Mine: Which number? / 2.0 apples / two." in tokenizer.decode(engine.requests[1].prompt)  # type: ignore[arg-type]
    own.write_text("{problem} {predicted_answer}")
    with pytest.raises(UserError, match="expected_answer"):
        Judge(engine, tokenizer, template=own)


async def test_unreadable_answers_are_asked_again_then_reported(tokenizer: ChatTokenizer) -> None:
    engine = ScriptedEngine(tokenizer, in_turn(["Well...", "Well...", "Judgement: Yes"]))
    judged = await judge(QUESTION, [Judge(engine, tokenizer, JudgeSettings(attempts=3))])
    assert (judged.verdict, judged.asked, judged.invalid) == (Verdict.EQUAL, 3, None)
    assert len({r.sampling.seed for r in engine.requests}) == 3
    assert [r.sampling.temperature for r in engine.requests] == [0.0, 0.7, 0.7]

    engine = ScriptedEngine(tokenizer, lambda _: "Well...")
    judged = await judge(QUESTION, [Judge(engine, tokenizer, JudgeSettings(attempts=2))])
    assert (judged.verdict, judged.votes, judged.asked, judged.invalid) == (Verdict.UNKNOWN, (None,), 2, "Well...")
    assert judged.replies == ("Well...",)

    ended = ScriptedEngine(
        tokenizer, lambda _: "Judgement: Yes<|im_end|>\n"
    )  # some servers write the end-of-text token
    assert (await judge(QUESTION, [Judge(ended, tokenizer)])).verdict is Verdict.EQUAL
    cut = ScriptedEngine(tokenizer, lambda _: "Judgement: Yes", Finish.LENGTH)  # the line could have gone on
    assert (await judge(QUESTION, [Judge(cut, tokenizer)])).verdict is Verdict.UNKNOWN


async def test_votes_of_several_judges(tokenizer: ChatTokenizer) -> None:
    yes = Judge(ScriptedEngine(tokenizer, lambda _: "Judgement: Yes"), tokenizer)
    no = Judge(ScriptedEngine(tokenizer, lambda _: "Judgement: No"), tokenizer, JudgeSettings(votes=2))
    silent = Judge(ScriptedEngine(tokenizer, lambda _: "?"), tokenizer, JudgeSettings(attempts=1))
    judged = await judge(QUESTION, [yes, no, silent])
    assert (judged.verdict, judged.votes) == (Verdict.NOT_EQUAL, (True, False, False, None))
    assert judged.reason == "judged 1 to 2, 1 invalid"
    assert judged.replies == ("Judgement: Yes", "Judgement: No", "Judgement: No", "?")
    assert (await judge(QUESTION, [yes, Judge(no.engine, tokenizer)])).verdict is Verdict.UNKNOWN
    with pytest.raises(UserError):
        Judge(yes.engine, tokenizer, JudgeSettings(votes=0))


async def test_what_was_said_is_kept_without_the_thinking(tokenizer: ChatTokenizer) -> None:
    said = "<think>2.0 apples are two apples.</think>\n\nBoth are two.\nJudgement: Yes"
    judged = await judge(QUESTION, [Judge(ScriptedEngine(tokenizer, lambda _: said), tokenizer)])
    pair = JudgedPair(QUESTION, Grade(Verdict.UNKNOWN, "apples"), judged)
    assert pair.to_json()["replies"] == ["Both are two.\nJudgement: Yes"]
    assert JudgedPair.from_json(pair.to_json()) == pair
    earlier = {name: value for name, value in pair.to_json().items() if name != "replies"}
    assert JudgedPair.from_json(earlier).judged.replies == ()


async def test_engine_errors_are_the_callers(tokenizer: ChatTokenizer) -> None:
    def fail(question: str) -> str:
        raise EngineError("busy", retryable=True)

    with pytest.raises(EngineError):
        await judge(QUESTION, [Judge(ScriptedEngine(tokenizer, fail), tokenizer)])


def test_agreement_counts_and_shows() -> None:
    agreement = Agreement(keep=1)
    yes, no, open_ = (Judgement(v, "judged") for v in (Verdict.EQUAL, Verdict.NOT_EQUAL, Verdict.UNKNOWN))
    for a, b, judged in [("1", "1.0", yes)] * 4 + [("1", "2", no)] * 4 + [("1", "2", yes)] * 2 + [("x", "y?", no)]:
        agreement.add(JudgedPair(Question("p", a, b), compare(a, b), judged))
    agreement.add(JudgedPair(Question("p", "1", "2"), Grade(Verdict.NOT_EQUAL, ""), open_))
    assert agreement.both_decided == 10
    assert agreement.rate == pytest.approx(0.8)
    # Cohen by hand: p_o = 0.8, p_e = 0.4 * 0.6 + 0.6 * 0.4 = 0.48.
    assert agreement.kappa == pytest.approx((0.8 - 0.48) / 0.52)
    assert len(agreement.disagreements) == 1
    report = agreement.to_json()
    assert report["table"]["not_equal/equal"] == 2
    assert report["disagreements"][0]["expected_answer"] == "2"
    assert Agreement().rate is None
    assert Agreement().kappa is None


async def test_with_the_demo_teacher_as_judge(tokenizer: ChatTokenizer) -> None:
    from nemo_openmath.demo.teacher import StandInTeacher

    judges = [Judge(StandInTeacher(tokenizer), tokenizer, JudgeSettings(votes=3))]
    assert (await judge(Question("p", "4", "four?"), judges)).verdict in (Verdict.EQUAL, Verdict.NOT_EQUAL)
    assert (await judge(Question("p", "12", "13"), judges)).verdict is Verdict.NOT_EQUAL
    assert (await judge(Question("p", "12.0", "12"), judges)).votes.count(None) == 0

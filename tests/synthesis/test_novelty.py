"""Votes on code: what is shown, how replies are read, what is kept, and that nothing is judged twice."""

import random
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer, Message, Transcript, load_template
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.core.errors import Incomplete, UserError
from nemo_openmath.core.records import Generation
from nemo_openmath.demo import teacher_tasks
from nemo_openmath.synthesis.solutions.fragments import fragments_of
from nemo_openmath.synthesis.solutions.novelty import BlockDecision, Novelty, NoveltyConfig, drop_reason
from tests.support.engines import BUSY, Reply
from tests.support.services import run_stage


def call(code: str, output: str) -> str:
    return f"<tool_call>\n{code}\n</tool_call>{output_block(output)}{notice_block(3)}"


def generation(name: str, text: str) -> Generation:
    transcript = Transcript.from_text((Message("user", "q"),), text)
    return Generation(
        id=name, problem_id=f"problem of {name}", mode="tir", model="m", sample=0, transcript=transcript.to_json(),
        finish="stop", code_calls=len(transcript.code_blocks()), predicted_answer="3", verdict="equal",
    )  # fmt: skip


SEARCH, SUM, CHECK = "SEARCH", "SUM", "CHECK"


def solution(*codes: str) -> str:
    return "<think>" + "".join(f"Now {code}. {call(code, '7')}So it is 7." for code in codes) + "</think>\\boxed{7}"


def says(question: str) -> str:
    """New is what is no check; a search is significant, a sum moderate."""
    (code,) = re.findall(r"```python\n(.*?)\n```", question, re.DOTALL)
    if '"Judgement: novel"' in question:
        return f"Thought.\nJudgement: {'verification' if code == CHECK else 'novel'}"
    return f"**Judgement: {({SEARCH: 'significant', SUM: 'moderate'}).get(code, 'trivial')}**"


def test_a_fragment_is_a_block_with_the_text_around_it() -> None:
    fenced = call("y = ```\n2", "Traceback (most)")
    text = f"<think>aaa bbb {call('x = 1', 'one')}between{fenced}ccc ddd</think>eee"
    first, second = fragments_of(Transcript.from_text((), text), 5)
    assert first.text == "bbb\n\n```python\nx = 1\n```\n\n```output\none\n```\n\nbetwe"
    assert second.text == "tween\n\n````python\ny = ```\n2\n````\n\n````output\nTraceback (most)\n````\n\nccc d"
    assert (first.failed, second.failed) == (False, True)
    (whole, _) = fragments_of(Transcript.from_text((), text), 10_000)
    assert whole.text.startswith("aaa bbb\n\n```python")
    assert whole.text.endswith("between"), "not beyond the next block"
    assert "think" not in whole.text
    (bare, _) = fragments_of(Transcript.from_text((), text), 0)
    assert bare.text == "```python\nx = 1\n```\n\n```output\none\n```"
    assert fragments_of(Transcript.from_text((), "∑ no code ```python\n1\n```"), 5) == []
    (syntax,) = fragments_of(Transcript.from_text((), call("(", "SyntaxError: '(' was never closed")), 5)
    assert syntax.failed
    (unrun,) = fragments_of(Transcript.from_text((), "<tool_call>\nx = 1"), 5)
    assert unrun.failed


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("Judgement: novel", "novel"), ("Searches.\n\n**Judgement:** Novel.\n", "novel"),
        ("Final judgment: NOVEL", "novel"),
        ("Judgement: [verification]", "verification"), ("Judgement: not novel", "verification"),
        ("judgement - `novel`", "novel"), ("so\n\\boxed{\\text{novel}}", "novel"),
        ("why\n*verification*", "verification"),
        ("Judgement: novel\n---", "novel"),
        ("Judgement: novel, because it searches all cases", "novel"), ("Therefore, verification.", "verification"),
        ("Judgement: novel or verification", None), ("Judgement: novel\nOr not?", None), ("", None), ("novelty", None),
        ("Judgement: verification\nJudgement: novel", None), ("It is a novel program.", None), ("Judgement:", None),
        ("Judgement: novel\nNo, I was wrong.\nJudgement: verification", None), ("判断: novel 🧮", None),
    ],
)  # fmt: skip
def test_replies_are_read_by_their_last_line(reply: str, choice: str | None) -> None:
    novelty, _ = Novelty(NoveltyConfig())._questions
    assert novelty.parse(reply) == choice


@pytest.mark.parametrize(
    ("novelty", "significance", "decision"),
    [
        ("nnnnnnnn", "ssssssss", ("novel", "significant")),
        ("nnnnnnnv", "sssssssm", ("verification", "moderate")),
        ("nnn?nnnn", "sssmsst?", ("novel", "trivial")),
        ("????????", "???????s", (None, "significant")),
        ("n???????", "????????", ("novel", None)),
    ],
)
def test_one_vote_decides_against(novelty: str, significance: str, decision: tuple[str | None, str | None]) -> None:
    words = {"n": "novel", "v": "verification", "s": "significant", "m": "moderate", "t": "trivial", "?": None}
    block = BlockDecision.of(tuple(words[v] for v in novelty), tuple(words[v] for v in significance))
    assert (block.novelty, block.significance) == decision


LITTLE = "too little of its code is more than trivial"


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ("ns", None), ("ns vt vt vt", None), ("nm", None), ("nm vm", LITTLE),
        ("nm nm vt", None), ("nm nt", LITTLE), ("nm -", LITTLE),
        ("nt", "its new code is trivial"), ("n?", "its new code is trivial"), ("vs", "its code finds nothing new"),
        ("", "no code to judge"),
        ("- -", "all of its code failed"), ("?? -", "no vote on its code could be read"), ("- ns", None),
    ],
)  # fmt: skip
def test_what_is_kept(blocks: str, reason: str | None) -> None:
    words = {"n": "novel", "v": "verification", "s": "significant", "m": "moderate", "t": "trivial", "?": None}
    decisions = [
        BlockDecision(None, None) if block == "-" else BlockDecision(words[block[0]], words[block[1]], (None,), (None,))
        for block in blocks.split()
    ]
    assert drop_reason(decisions) == reason


ROWS = [
    generation("search", solution(SEARCH)),
    generation("check", solution(CHECK)),
    generation("both", solution(CHECK, SEARCH)),
    generation("half", solution(CHECK, SUM)),
    generation("sum", solution(SUM)),
    generation("none", "no code ∑ \\boxed{7}"),
    *(generation(f"equal{n}", solution("EQUAL")) for n in range(32)),
]


async def test_votes_decide_and_are_stored(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    outcome = await run_stage(Novelty(NoveltyConfig()), tmp_path, says, tokenizer=tokenizer, generations=ROWS)
    kept = {g.id: g for g in outcome.records}
    assert kept.keys() == {"search", "both", "sum"}
    assert kept["sum"].extra["novelty"] == [
        {"novelty": "novel", "significance": "moderate",
         "votes": {"novelty": ["novel"] * 8, "significance": ["moderate"] * 8}}
    ]  # fmt: skip
    assert sorted(set(outcome.reasons)) == [
        "its code finds nothing new", "its new code is trivial", "no code to judge",
        LITTLE,
    ]  # fmt: skip
    details = {unit: drop.detail for unit, drop in outcome.drops}
    assert details["check"].startswith("verification, trivial: Now CHECK.\n\n```python\nCHECK\n```")
    different = 3 + 2 + 2 + 1  # fragments: one of each solution's blocks; 32 equal ones are one
    assert len(outcome.asked) == different * 2 * 8
    assert len({(asked.question, asked.seed) for asked in outcome.asked}) == len(outcome.asked)
    counts = outcome.context.metrics["novelty"]
    assert (counts["replies"], counts["unreadable_replies"]) == (len(outcome.asked), 0)
    assert counts["votes"]["novelty: verification"] == 3 * 8
    assert counts["blocks"] == {
        "novel, moderate": 2, "novel, significant": 2, "novel, trivial": 1, "verification, trivial": 3,
    }  # fmt: skip


def every_fifth(broken: Reply) -> Callable[[str], str | Reply]:
    numbers = count(1)
    return lambda question: broken if next(numbers) % 5 == 0 else says(question)


async def test_a_stopped_run_asks_nothing_again(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Whatever stopped it, in the middle of a line, too, and in whatever order the next one reads."""
    stage = Novelty(NoveltyConfig(concurrency=7))
    stage.retries = 0
    with pytest.raises(Incomplete):
        await run_stage(stage, tmp_path, every_fifth(BUSY), tokenizer=tokenizer, generations=ROWS)
    (journal,) = (tmp_path / "out").glob("votes-*.jsonl")
    replies = journal.read_bytes()
    journal.write_bytes(replies + b'{"key": "to')
    second = await run_stage(Novelty(NoveltyConfig()), tmp_path, says, tokenizer=tokenizer, generations=ROWS)
    whole = await run_stage(Novelty(NoveltyConfig()), tmp_path / "b", says, tokenizer=tokenizer, generations=ROWS[::-1])
    assert {g.id: g.extra for g in second.records} == {g.id: g.extra for g in whole.records}
    assert second.reasons == whole.reasons
    assert replies.count(b"\n") + len(second.asked) == len(whole.asked)
    assert second.context.metrics == whole.context.metrics


async def test_a_reply_that_cannot_be_read_is_asked_for_again(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    stage = Novelty(NoveltyConfig(attempts=10))
    for name, broken in (("words", Reply("hm")), ("cut", Reply("Judgement: novel", "length"))):
        outcome = await run_stage(stage, tmp_path / name, every_fifth(broken), tokenizer=tokenizer, generations=ROWS)
        assert {g.id for g in outcome.records} == {"search", "both", "sum"}
        assert outcome.context.metrics["novelty"]["unreadable_replies"] == len(outcome.asked) // 5
        assert len({(asked.question, asked.seed) for asked in outcome.asked}) == len(outcome.asked)


async def test_votes_that_nobody_can_read_are_counted(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    config = NoveltyConfig(attempts=2, votes=3)
    outcome = await run_stage(Novelty(config), tmp_path, lambda _: "hm", tokenizer=tokenizer, generations=ROWS[:1])
    assert outcome.reasons == ["no vote on its code could be read"]
    assert outcome.context.metrics["novelty"] == {
        "replies": 12, "unreadable_replies": 12, "votes": {}, "unreadable_example": "hm", "blocks": {"none, none": 1},
    }  # fmt: skip
    again = await run_stage(
        Novelty(NoveltyConfig(attempts=4, votes=3)), tmp_path, says, tokenizer=tokenizer, generations=ROWS[:1]
    )
    assert again.asked == [], "its unit is done"


async def test_another_prompt_is_another_vote(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """A folder that holds votes of another prompt, as of a recipe that was changed: they are not taken."""
    own = tmp_path / "own.txt"
    own.write_text('{fragment}\n"Judgement: novel" or "Judgement: verification"?')
    await run_stage(Novelty(NoveltyConfig()), tmp_path / "a", says, tokenizer=tokenizer, generations=ROWS[:1])
    for file in (tmp_path / "a" / "out").glob("*-of-*"):
        if not file.name.startswith("votes-"):
            file.unlink()
    config = NoveltyConfig(novelty_prompt=own)
    outcome = await run_stage(Novelty(config), tmp_path / "a", says, tokenizer=tokenizer, generations=ROWS[:1])
    assert len(outcome.asked) == 8, "those of significance are kept"
    assert outcome.context.metrics["novelty"]["replies"] == 16, "what is no vote any more is not counted"
    own.write_text("no place")
    with pytest.raises(UserError, match="no place for"):
        Novelty(config)


def test_the_stand_in_votes() -> None:
    """Its rule: new unless the text before holds what was printed; a loop is much."""
    rng = random.Random(1)
    texts = {
        "novel": f"I search.{call('for i in range(3):' + chr(10) + '    print(i)', '42')}",
        "verification": f"It is 42.{call('print(42)', '42')}",
    }
    for choice, text in texts.items():
        (fragment,) = fragments_of(Transcript.from_text((), text), 100)
        novelty, significance = Novelty(NoveltyConfig())._questions
        values = load_template("classify-novelty").match(novelty.template.messages(fragment=fragment.text)[0].content)
        assert values == {"fragment": fragment.text}
        assert novelty.parse(teacher_tasks.classify_novelty(fragment.text, rng, 0.0)) == choice
        weight = significance.parse(teacher_tasks.classify_significance(fragment.text, rng, 0.0))
        assert weight == {"novel": "significant", "verification": "trivial"}[choice]

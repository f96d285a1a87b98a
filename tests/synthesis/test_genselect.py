"""GenSelect: the candidate that a judgment names, what names none, training data, rounds, and what is asked again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer, Transcript, load_template
from nemo_openmath.core.errors import Incomplete
from nemo_openmath.core.records import Generation, Group, Mode, Problem
from nemo_openmath.evaluation.iterations import tokens_in
from nemo_openmath.synthesis.genselect.select import GenSelect, GenSelectConfig
from nemo_openmath.synthesis.genselect.targets import Targets, TargetsConfig
from tests.support.engines import BUSY, REFUSED, Reply
from tests.support.services import StageRun, run_stage

PROBLEM = Problem.make("What is 6 times 7?", expected_answer="42")
CANDIDATES = {"right": ("I get \\boxed{42}.", "42", True), "wrong": ("I get \\boxed{41}.", "41", False)}


def group(*names: str, turn: int = 0, problem: Problem = PROBLEM, **extra: Any) -> Group:
    summaries, answers, correct = zip(*(CANDIDATES[name] for name in names), strict=True) if names else ((), (), ())
    return Group.make(
        problem.id,
        names,
        turn=turn,
        problem=problem.problem,
        summaries=summaries,
        answers=answers,
        correct=correct,
        expected_answer="42",
        k=4,
        mode=Mode.TIR,
        **extra,
    )


@pytest.fixture
def select(tokenizer: ChatTokenizer, tmp_path: Path) -> Callable[..., Any]:
    async def run(answer: Callable[[str], str | Reply], *groups: Group, **settings: Any) -> StageRun:
        stage = GenSelect(GenSelectConfig(**settings))
        return await run_stage(stage, tmp_path, answer, tokenizer=tokenizer, groups=groups)

    return run


@pytest.mark.parametrize(
    ("reply", "chosen", "verdict", "reason"),
    [
        ("Both look well. Judgment: 1", "right", "equal", "of the chosen candidate"),
        ("<think>Judgment: 0?</think>The second. Judgment: [1]", "right", "equal", "of the chosen candidate"),
        ("Judgment: 0", "wrong", "not_equal", "of the chosen candidate"),
        ("Judgment: 2", None, "not_equal", "judgment out of range"),
        ("The second one.", None, "not_equal", "no valid judgment"),
        (Reply("Judgment: 1", finish="length"), None, "not_equal", "no valid judgment"),  # it might have gone on
    ],
)
async def test_the_answer_is_that_of_the_candidate_that_the_judgment_names(
    select: Callable[..., Any], reply: str | Reply, chosen: str | None, verdict: str, reason: str
) -> None:
    listed = group("wrong", "right")
    run = await select(lambda _: reply, listed)
    (made,) = run.records
    text = reply if isinstance(reply, str) else reply.text
    assert (made.mode, made.problem_id, made.verdict) == ("genselect", PROBLEM.id, verdict)
    assert made.predicted_answer == (CANDIDATES[chosen][1] if chosen else None)
    assert made.parents == (listed.id, "wrong", "right")
    asked_prompt = {"prompt": load_template("genselect").digest}
    assert made.extra == {
        "group": listed.id, "chosen": chosen, "k": 4, "round": 0, "of": "tir", "asked": asked_prompt
    }  # fmt: skip
    assert made.verdict_reason == reason
    counts = (run.context.metrics["judgments_unreadable"], run.context.metrics["judgments_out_of_range"])
    assert counts == (reason == "no valid judgment", reason == "judgment out of range")
    assert Transcript.from_json(made.transcript).text == text
    (asked,) = run.asked
    assert asked.question.index("Solution 0:\nI get \\boxed{41}.") < asked.question.index(
        "Solution 1:\nI get \\boxed{42}."
    )
    assert "2 candidate solutions" in asked.question


async def test_nothing_is_asked_where_there_is_nothing_to_choose(select: Callable[..., Any]) -> None:
    empty = group(problem=Problem.make("Which?"))
    lost = group(problem=Problem.make("Lost?"), untried="context")
    run = await select(lambda _: "Judgment: 0", group("right"), empty, lost)
    assert run.asked == []
    assert {made.problem_id: (made.extra["chosen"], made.verdict, made.finish) for made in run.records} == {
        PROBLEM.id: ("right", "equal", "stop"),
        empty.problem_id: (None, "not_equal", "stop"),
        lost.problem_id: (None, "unknown", "context"),
    }


async def test_training_data_holds_choices_of_correct_candidates_alone(select: Callable[..., Any]) -> None:
    texts = {
        "chooses right": "Judgment: 0",
        "chooses wrong": "Judgment: 1",
        "chooses none": "Hm.",
        "chooses too far": "Judgment: 2",
        "forbidden": REFUSED,
    }
    groups = [group("right", "wrong", problem=Problem.make(text)) for text in texts]
    run = await select(
        lambda question: next(reply for text, reply in texts.items() if text in question), *groups, keep_correct=True
    )
    assert [(made.parents[0], made.extra["chosen"]) for made in run.records] == [(groups[0].id, "right")]
    assert run.reasons == [
        "chose an incorrect candidate",
        "judgment out of range",
        "no valid judgment",
        "refused by the engine",
    ]
    assert run.records[0].completion_tokens == 1
    assert tokens_in(run.context.output) == 4, "what was dropped was written, too"
    journal = next(run.context.output.glob("journal-*"))  # of a version that did not count them
    journal.write_bytes(journal.read_bytes().replace(b',"tokens":1}', b"}"))
    assert tokens_in(run.context.output) == 1


async def test_a_refused_group_of_a_benchmark_is_counted_apart(select: Callable[..., Any]) -> None:
    groups = [group("right", "wrong", problem=Problem.make(text)) for text in ("forbidden", "free")]
    run = await select(lambda question: REFUSED if "forbidden" in question else "Judgment: 0", *groups)
    assert {made.parents[0]: (made.finish, made.verdict) for made in run.records} == {
        groups[0].id: ("refused", "unknown"),
        groups[1].id: ("stop", "equal"),
    }
    assert run.context.metrics["untried"] == 1


async def test_rounds_are_numbered_by_problem_and_drawn_apart(select: Callable[..., Any]) -> None:
    other = Problem.make("What is 5 times 8?")
    groups = [group("right", "wrong"), group("right", "wrong", turn=1), group("wrong", "right", problem=other)]
    run = await select(lambda _: "Judgment: 0", *groups, groups[0], samples=2)  # one stands there twice
    rounds: dict[str, list[int]] = {}
    for made in run.records:
        rounds.setdefault(made.problem_id, []).append(made.extra["round"])
        assert made.sample == made.extra["round"]
    assert {problem: sorted(numbers) for problem, numbers in rounds.items()} == {
        PROBLEM.id: [0, 1, 2, 3],
        other.id: [0, 1],
    }
    assert len({made.id for made in run.records}) == len({asked.seed for asked in run.asked}) == 6


async def test_a_second_run_judges_only_what_is_missing(select: Callable[..., Any]) -> None:
    groups = [group("right", "wrong", problem=Problem.make(f"Number {n}")) for n in range(3)]
    with pytest.raises(Incomplete, match="2 units failed"):
        await select(lambda question: BUSY if "Number 1" in question else "Judgment: 0", *groups, samples=2)
    second = await select(lambda _: "Judgment: 0", *groups, samples=2)
    assert [("Number 1" in asked.question) for asked in second.asked] == [True, True]
    assert len(second.records) == 6
    third = await select(lambda _: "Judgment: 1", *groups, samples=2)
    assert (third.records, third.asked) == (second.records, [])


async def test_a_prompt_of_the_users_lists_solutions_in_its_own_form(
    select: Callable[..., Any], tmp_path: Path
) -> None:
    prompt = tmp_path / "own.txt"
    prompt.write_text('Q {problem}\n{solutions}\nWhich?\n[solution]\n<{index}>{solution}</{index}>\n[between] "\\n"\n')
    run = await select(lambda _: "Judgment: 1", group("wrong", "right"), prompt=prompt)
    (asked,) = run.asked
    assert asked.question == f"Q {PROBLEM.problem}\n<0>I get \\boxed{{41}}.</0>\n<1>I get \\boxed{{42}}.</1>\nWhich?"
    assert run.records[0].extra["asked"]["prompt"] == load_template("genselect", prompt).digest


@pytest.fixture
def retarget(select: Callable[..., Any], tokenizer: ChatTokenizer, tmp_path: Path) -> Callable[..., Any]:
    async def run(
        comparison: str, answer: Callable[[str], str | Reply], **settings: Any
    ) -> tuple[Generation, StageRun]:
        (selection,) = (await select(lambda _: comparison, group("wrong", "right"))).records
        stage = Targets(TargetsConfig(**settings))
        folder = tmp_path / "targets"
        return selection, await run_stage(stage, folder, answer, tokenizer=tokenizer, selections=[selection])

    return run


COMPARISON = "<think>One of them adds.</think>The first one adds. Judgment: [1]"


async def test_a_target_is_the_longest_summary_that_ends_in_the_same_judgment(retarget: Callable[..., Any]) -> None:
    replies = iter(
        [
            "Judgment: 1",
            "<think>Judgment: 0 is longer than all of them, but it is thinking.</think>\nIt adds.\n**Judgment: [1]**",
            "The first is the longest of all these, and right: Judgment: 0",
            "Judgment: 1, which is longer than all others but does not end in it",
            "Code <tool_call>print(1)</tool_call> that nobody ran, longer. Judgment: 1",
            Reply("Judgment: 1 ... Judgment: 1 is cut at its limit, longer than all, Judgment: 1", finish="length"),
            "<think>No end of this, longer than all others, Judgment: 1",
        ]
    )
    old, run = await retarget(COMPARISON, lambda _: next(replies), candidates=7, max_tokens=99)
    (new,) = run.records
    transcript = Transcript.from_json(new.transcript)
    assert transcript.text == "It adds.\n**Judgment: [1]**", "it replaces the reasoning"
    assert not new.thinks
    assert transcript.messages == Transcript.from_json(old.transcript).messages, "the prompt stays as it was asked"
    assert (new.id, new.extra, new.verdict, new.predicted_answer) == (old.id, old.extra, "equal", "42")
    assert len({asked.seed for asked in run.asked}) == 7
    assert {asked.max_tokens for asked in run.asked} == {99}
    for asked in run.asked:
        assert COMPARISON in asked.question
        assert PROBLEM.problem in asked.question


@pytest.mark.parametrize(
    ("comparison", "reply", "reason"),
    [
        (COMPARISON, "Judgment: 0", "no summary kept the judgment"),
        (COMPARISON, "Judgment: 11", "no summary kept the judgment"),
        (COMPARISON, "", "no summary kept the judgment"),
        (COMPARISON, "Judgment: 0\nJudgment: 1", "no summary kept the judgment"),
        (COMPARISON, "Judgment: \u0661", "no summary kept the judgment"),  # a one of Arabic script
        (COMPARISON, Reply("Judgment: 1", tokens=2049), "no summary was finished"),  # a server without limits
        (COMPARISON, Reply("Judgment: 1", finish="length"), "no summary was finished"),
        ("I cannot say.", "Judgment: 1", "no valid judgment"),
        ("Judgment: 7", "Judgment: 7", "no valid judgment"),
    ],
)
async def test_selections_without_a_valid_summary_are_dropped(
    retarget: Callable[..., Any], comparison: str, reply: str | Reply, reason: str
) -> None:
    _, run = await retarget(comparison, lambda _: reply, candidates=1)
    assert (run.records, run.reasons) == ([], [reason])

"""The stages of the problem set that ask a model: what each keeps, why it drops, how it joins, and what is redone."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import Incomplete, UserError
from nemo_openmath.core.merging import ANSWERS, read_merged
from nemo_openmath.core.records import Problem, Thread
from nemo_openmath.grading.majority import majority
from nemo_openmath.synthesis.problems.answers import ExtractAnswers, ExtractAnswersConfig
from nemo_openmath.synthesis.problems.classify import DOUBTED, Classify, ClassifyConfig
from nemo_openmath.synthesis.problems.convert import ConvertProofs
from nemo_openmath.synthesis.problems.decontaminate import Decontaminate, DecontaminateConfig
from nemo_openmath.synthesis.problems.extract import Extract
from nemo_openmath.synthesis.problems.prompted import DiscussedConfig, OnePromptConfig
from nemo_openmath.synthesis.problems.select import SelectProblems, SelectProblemsConfig
from tests.support.engines import BUSY, REFUSED, Reply
from tests.support.services import StageRun, run_stage

GARBLED = "I think that"


def by_text(replies: dict[str, str | Reply]) -> Callable[[str], str | Reply]:
    """The reply under the one key that stands in what the question asks about."""

    def answer(question: str) -> str | Reply:
        asked = question[max(0, question.find("----- ")) :]  # not the worked examples
        (key,) = [key for key in replies if key in asked]
        return replies[key]

    return answer


# -- extract problems --------------------------------------------------------------------------------------------------


async def test_the_forum_of_a_thread_is_the_source_of_its_problems_by_which_they_are_chosen(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    forums = ("Middle_School_Math", "Olympiads")
    threads = [Thread.make(f"Find x of {name}.").with_(extra={"problem_source": name}) for name in forums]
    replies: dict[str, str | Reply] = {f"Find x of {name}": f"Problem 1: Find x of {name}." for name in forums}
    extracted = await run_stage(
        Extract(OnePromptConfig()), tmp_path / "e", by_text(replies), tokenizer=tokenizer, threads=threads
    )
    records = sorted(extracted.records, key=lambda p: p.source)
    problems = [records[0].with_(problem_type="converted_proof"), *records[1:]]
    assert [p.source for p in problems] == list(forums)
    select = SelectProblems(SelectProblemsConfig(not_sources=("middle_school",)))
    run = await run_stage(select, tmp_path / "s", problems=problems)
    assert ([p.source for p in run.records], run.reasons) == (["Olympiads"], ["a problem source that is left out"])
    select = SelectProblems(SelectProblemsConfig(types=("converted_proof",), sources=("olympiad",)))
    run = await run_stage(select, tmp_path / "t", problems=problems)
    assert run.reasons == ["other problem source", "other problem type"]


TWO = "Hi! Two of them: Find the root of x+7=9. And: compute 12*5, then 60*2. Thanks"


async def test_extract_takes_the_problems_of_a_post_and_names_why_it_drops_one(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    replies: dict[str, str | Reply] = {
        TWO: "Problem 1: Find the root of x + 7 = 9.\nProblem 2: Compute 12 * 5,\nthen 60 * 2.\n"
        "Problem 3: Find  the root of x + 7 = 9.",
        "thanks": "No problem.",
        "chat": GARBLED,
        "forbidden": REFUSED,
    }
    threads = {text: Thread.make(text, "I get 4") for text in replies}
    run = await run_stage(
        Extract(OnePromptConfig()), tmp_path, by_text(replies), tokenizer=tokenizer, threads=list(threads.values())
    )
    assert [" ".join(problem.problem.split()) for problem in run.records] == [
        "Find the root of x + 7 = 9.",
        "Compute 12 * 5, then 60 * 2.",
    ]
    assert {problem.parents for problem in run.records} == {(threads[TWO].id,)}
    assert run.reasons == ["no problem in the post", "refused by the engine", "the reply is no list of problems"]
    assert not any("I get 4" in asked.question for asked in run.asked), "only the post is shown"


# -- classify ----------------------------------------------------------------------------------------------------------


ABOUT = {
    "ask for a proof?": "Prove b.",
    "multiple choice?": "Choose c.",
    "only yes or no?": "Is d?",
    "is invalid?": "Hello e!",
}
"""What the question that ends like this is answered with yes for."""


def verdicts(question: str) -> str | Reply:
    if "Forbidden g." in question:
        return REFUSED
    (of,) = [problem for end, problem in ABOUT.items() if end in question.partition(" ends -----\n")[2]]
    return f"Why: so it is.\nVerdict: {'yes' if of in question else 'no'}"


async def test_classify_keeps_what_can_be_checked_and_names_why_it_drops(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    def answer(question: str) -> str | Reply:
        garbled = "What is f?" in question and "ask for a proof?" in question
        return GARBLED if garbled else verdicts(question)

    texts = ("Find a.", *ABOUT.values(), "What is f?", "Forbidden g.")
    problems = [Problem.make(text, source="forum", parents=(f"thread {text}",)) for text in texts]
    stage = Classify(ClassifyConfig())
    run = await run_stage(stage, tmp_path, answer, tokenizer=tokenizer, problems=problems)
    assert sorted(run.records, key=lambda p: p.problem) == [
        problems[0].with_(category="answer"),
        problems[1].with_(category="proof"),
    ]
    no_verdict = "the reply is no verdict of yes or no"
    assert run.reasons == ["binary", "invalid", "multiple-choice", "refused by the engine", no_verdict]
    assert {drop.reason: drop.detail for _, drop in run.drops}[no_verdict] == f"proof: {GARBLED}"
    assert sum("Find a." in asked.question for asked in run.asked) == 4, "each question alone"
    assert sum("Hello e!" in asked.question for asked in run.asked) == 1, "the first yes ends the questions"
    assert {name: len(digest) for name, digest in stage.settings()["templates"].items()} == {
        f"classify-{name}": 16 for name in ("invalid", "multiple-choice", "binary", "proof")
    }


async def test_a_problem_of_which_nobody_can_say_whether_it_is_invalid_counts_as_valid_and_is_counted(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    def answer(question: str) -> str | Reply:
        return GARBLED if "is invalid?" in question else verdicts(question)

    problems = [Problem.make(text) for text in ("Find a.", "Is d?")]
    run = await run_stage(
        Classify(ClassifyConfig(attempts=2)), tmp_path, answer, tokenizer=tokenizer, problems=problems
    )
    assert run.records == [problems[0].with_(category="answer", extra={DOUBTED: True})]
    assert run.reasons == ["binary"]
    assert run.context.metrics[DOUBTED] == 1


async def test_a_reply_that_cannot_be_read_is_asked_for_again_with_other_seeds(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    replies = iter(["Well...", Reply("Verdict: yes", finish="length"), "Verdict: no"])
    stage = Classify(ClassifyConfig(attempts=3, questions=("proof",)))
    run = await run_stage(
        stage, tmp_path, lambda _: next(replies), tokenizer=tokenizer, problems=[Problem.make("Find a.")]
    )
    assert [problem.category for problem in run.records] == ["answer"]
    assert [asked.temperature for asked in run.asked] == [0.0, 0.7, 0.7]
    assert run.asked[1].seed != run.asked[2].seed
    assert len({asked.question for asked in run.asked}) == 1


async def test_classify_drops_the_categories_that_the_recipe_names(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    run = await run_stage(
        Classify(ClassifyConfig(drop=("proof",))), tmp_path, verdicts, tokenizer=tokenizer,
        problems=[Problem.make(text) for text in ("Prove b.", "Is d?")],
    )  # fmt: skip
    assert [problem.category for problem in run.records] == ["binary"]
    assert run.reasons == ["proof"]
    with pytest.raises(ValueError, match="drop: unknown category 'proofs'; known: invalid, multiple-choice"):
        ClassifyConfig(drop=("proofs",))
    with pytest.raises(ValueError, match="questions: name each at most once"):
        ClassifyConfig(questions=("proof", "proof"))


def test_another_text_of_a_question_is_another_stage(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    fingerprints = []
    for text in ("Is {problem} a proof?", "Is {problem} a proof? Think.", "Is {problem} a proof?"):
        own.write_text(text)
        fingerprints.append(Classify(ClassifyConfig(proof_prompt=own)).fingerprint({}, 1))
    fingerprints.append(Classify(ClassifyConfig()).fingerprint({}, 1))
    assert fingerprints[0] == fingerprints[2]
    assert len(set(fingerprints)) == 3


# -- convert proofs ----------------------------------------------------------------------------------------------------

CONVERTED = "Problem: Find the sum\nof all n.\nAnswer: 12."


async def test_convert_makes_a_problem_of_a_proof_and_leaves_others_alone(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    threads = [Thread.make(f"Post {n}", f"reply of thread {n}") for n in range(3)] + [Thread.make("Silent", " \n")]
    random.Random(1).shuffle(threads)
    ids = {thread.forum_post: thread.id for thread in threads}
    parents = (ids["Post 2"], ids["Silent"], ids["Post 0"])
    proof = Problem.make("Prove that the sum of all n is 12.", category="proof", source="forum", parents=parents)
    other = Problem.make("Find n.", category="answer", parents=(ids["Post 1"],))
    run = await run_stage(
        ConvertProofs(DiscussedConfig()), tmp_path, lambda _: CONVERTED, tokenizer=tokenizer,
        problems=[proof, other], threads=threads,
    )  # fmt: skip
    converted = Problem.make(
        "Find the sum\nof all n.",
        expected_answer="12",
        problem_type="converted_proof",
        category="answer",
        source="forum",
        parents=(proof.id, *parents),
    )
    assert sorted(run.records, key=lambda p: p.id) == sorted([converted, other], key=lambda p: p.id)
    (asked,) = run.asked
    assert "Prove that the sum of all n is 12." in asked.question
    joined = "----- discussion begins -----\nPost 1:\nreply of thread 2\n\nPost 2:\nreply of thread 0\n-----"
    assert joined in asked.question, "joined by id, in parents' order"
    assert "thread 1" not in asked.question


async def test_convert_names_why_it_drops(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """A box in place of the line ``Answer:`` is no answer: where the problem ends would be a guess."""
    replies: dict[str, str | Reply] = {
        "Prove a.": "Not possible.",
        "Prove b.": GARBLED,
        "Prove c.": "Problem: Find c.\nThe answer is \\boxed{5}.",
        "Prove d.": "Problem: Find d.\nAnswer:",
        "Prove e.": REFUSED,
    }
    run = await run_stage(
        ConvertProofs(DiscussedConfig(attempts=2)), tmp_path, by_text(replies), tokenizer=tokenizer,
        problems=[Problem.make(text, category="proof") for text in replies], threads=[],
    )  # fmt: skip
    assert run.records == []
    assert run.reasons == [
        "proof that cannot be converted",
        "refused by the engine",
        *["the reply is no problem with an answer"] * 3,
    ]
    assert len(run.asked) == 1 + 3 * 2 + 1, "what cannot be read is asked for again"


@pytest.mark.parametrize(
    ("answers", "agreed", "kind", "votes"),
    [(["7", "7"], "7", "converted_proof", None), (["7", "8"], None, "no_answer_extracted", {"7": 1, "8": 1})],
)
async def test_proofs_that_become_one_problem_are_read_as_one(
    tokenizer: ChatTokenizer, tmp_path: Path, answers: list[str], agreed: str | None, kind: str, votes: Any
) -> None:
    proofs = [Problem.make(f"Prove that the root is {n}.", category="proof") for n in range(2)]
    replies: dict[str, str | Reply] = {
        f"Prove that the root is {n}.": f"Problem: Find the root.\nAnswer: {answer}" for n, answer in enumerate(answers)
    }
    run = await run_stage(
        ConvertProofs(DiscussedConfig()), tmp_path, by_text(replies), tokenizer=tokenizer, problems=proofs, threads=[]
    )
    (one,) = read_merged([run.context.output], Problem, majority)
    assert set(one.parents) == {proof.id for proof in proofs}
    assert (one.expected_answer, one.problem_type, one.extra.get(ANSWERS)) == (agreed, kind, votes)


# -- extract answers ---------------------------------------------------------------------------------------------------


def last_number(question: str) -> str:
    numbers = re.findall(r"it is (\d+)", question.partition("discussion begins -----")[2])
    return f"Answer: {numbers[-1]}" if numbers else "Not found"


@pytest.mark.parametrize(
    ("replies", "answer", "kind"),
    [
        (["it is 4, no, it is 5"], "5", "has_answer_extracted"),
        (["it is 4", "Nice!", "it is 5", "it is 4.0", ""], "4", "has_answer_extracted"),
        (["it is 4", "it is 5"], None, "no_answer_extracted"),  # a tie
        (["Nice!", "Thanks"], None, "no_answer_extracted"),
        (["", " \n"], None, "no_answer_extracted"),  # there is nothing to ask about
    ],
)
async def test_extract_answers_takes_what_most_threads_say(
    tokenizer: ChatTokenizer, tmp_path: Path, replies: list[str], answer: str | None, kind: str
) -> None:
    threads = [Thread.make(f"Post {n}", text) for n, text in enumerate(replies)]
    problem = Problem.make("What is 2 + 2?", category="answer", parents=tuple(thread.id for thread in threads))
    foreign = Thread.make("Another post", "it is 9")
    run = await run_stage(
        ExtractAnswers(ExtractAnswersConfig()), tmp_path, last_number, tokenizer=tokenizer, problems=[problem],
        threads=[foreign, *reversed(threads)],
    )  # fmt: skip
    (found,) = run.records
    assert (found.expected_answer, found.problem_type, found.parents) == (answer, kind, problem.parents)
    assert len(run.asked) == sum(bool(text.strip()) for text in replies), "each thread that has replies is asked alone"
    assert not any("it is 9" in asked.question for asked in run.asked)


async def test_threads_that_a_problem_stands_for_must_be_there(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    threads = [Thread.make("Find x.", "Post 1:\n3"), Thread.make("Find  x.", "Post 1:\n4")]
    problem = Problem.make("Find x.", parents=tuple(thread.id for thread in threads))
    with pytest.raises(UserError, match=rf"lacks 1 threads of the problems, such as {threads[1].id}"):
        await run_stage(
            ExtractAnswers(ExtractAnswersConfig()), tmp_path, by_text({}), tokenizer=tokenizer, problems=[problem],
            threads=threads[:1],
        )  # fmt: skip


async def test_extract_answers_keeps_known_ones_and_drops_what_it_cannot_read(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    threads = {text: Thread.make(f"Post: {text}", text) for text in ("clear reply: 4", "garbled", "refused")}
    says: dict[str, str | Reply] = {"clear reply: 4": "Answer: 4", "garbled": "It may be 4.", "refused": REFUSED}

    def problem(text: str, *names: str, **values: Any) -> Problem:
        return Problem.make(text, parents=tuple(threads[name].id for name in names), **values)

    known = problem("Known?", "garbled", expected_answer="1", problem_type="converted_proof")
    run = await run_stage(
        ExtractAnswers(ExtractAnswersConfig(attempts=2)), tmp_path, by_text(says), tokenizer=tokenizer,
        threads=list(threads.values()),
        problems=[
            known, problem("Half?", "garbled", "clear reply: 4"), problem("None?", "garbled"), problem("No?", "refused")
        ],
    )  # fmt: skip
    assert {found.problem: found.expected_answer for found in run.records} == {"Known?": "1", "Half?": "4"}
    assert known in run.records
    assert run.reasons == ["refused by the engine", "the reply is no answer"]


async def test_a_problem_of_two_versions_is_asked_about_once_with_the_threads_of_both(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    threads = [Thread.make(f"Post {n}", f"it is {n}") for n in (3, 3, 5)][1:]
    versions = [Problem.make("What is it?", parents=(thread.id,)) for thread in threads]
    run = await run_stage(
        ExtractAnswers(ExtractAnswersConfig()),
        tmp_path,
        last_number,
        tokenizer=tokenizer,
        problems=versions,
        threads=threads,
    )
    (found,) = run.records
    assert set(found.parents) == {thread.id for thread in threads}
    assert found.extra[ANSWERS] == {"3": 1, "5": 1}


# -- what all of them do -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A stage over three problems, each of which it asks about once."""

    stage: Callable[[], Any]
    reply: str
    inputs: dict[str, list[Any]]


HELD = "How many positive integers up to 500 are divisible by 3 but not by 7?"
THREE = [Problem.make(f"Number {n}: {HELD}", category="proof", parents=(f"t{n}",)) for n in range(3)]
THREADS = [Thread.make(f"Post {n}", "it is 4").with_(id=f"t{n}") for n in range(3)]
CASES = {
    "classify": Case(lambda: Classify(ClassifyConfig(questions=("proof",))), "Verdict: no", {}),
    "convert": Case(
        lambda: ConvertProofs(DiscussedConfig()),
        "Problem: How many positive integers up to 500 are divisible by 3?\nAnswer: 166",
        {"threads": THREADS},
    ),
    "answers": Case(lambda: ExtractAnswers(ExtractAnswersConfig()), "Answer: 4", {"threads": THREADS}),
    "decontaminate": Case(
        lambda: Decontaminate(DecontaminateConfig(orders="one")), "Verdict: no", {"benchmark": [Problem.make(HELD)]}
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_a_second_run_asks_only_about_what_is_missing(
    tokenizer: ChatTokenizer, tmp_path: Path, name: str
) -> None:
    case = CASES[name]

    async def run(answer: Callable[[str], str | Reply]) -> StageRun:
        # the first problem stands there twice: it is one
        inputs = {"problems": [*THREE, THREE[0].with_(parents=("t1",))]} | case.inputs
        return await run_stage(case.stage(), tmp_path, answer, tokenizer=tokenizer, **inputs)

    with pytest.raises(Incomplete, match="1 unit failed after 3 attempts"):
        await run(lambda question: BUSY if "Number 1" in question else case.reply)
    second = await run(lambda _: case.reply)
    assert [re.findall(r"Number \d", asked.question) for asked in second.asked] == [["Number 1"]]
    assert len(second.records) == 3
    assert second.drops == []
    third = await run(lambda _: GARBLED)
    assert (third.records, third.asked) == (second.records, [])

"""The forum holds what its parameters say, and a careful reader can find it again."""

import random
from collections import Counter

import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Thread
from nemo_openmath.demo import ForumConfig, forms, make_benchmark, make_threads, parse
from nemo_openmath.demo import teacher_tasks as tasks
from nemo_openmath.demo.forms import Form
from nemo_openmath.demo.forum import dressed
from nemo_openmath.demo.stages import as_read

NONE = random.Random(0)


def test_counts_forms_and_leaks() -> None:
    benchmark = make_benchmark(0, 100)
    config = ForumConfig()
    threads = make_threads(config, 0, benchmark)
    assert threads == make_threads(config, 0, benchmark) != make_threads(config, 1, benchmark)
    read = [forms.read(thread["forum_post"]) for thread in threads]
    sizes = Counter(len(found) for found in read)
    assert sizes[0] == config.none
    assert sizes[2] + sizes[3] == config.several
    single = Counter(found[0].form for found in read if len(found) == 1)
    assert single == {
        Form.ANSWER: config.single + config.leaked + config.reworded,
        Form.PROOF: config.proof + config.beyond,
        Form.CHOICE: config.choice,
        Form.BINARY: config.binary,
        Form.INVALID: config.broken,
    }
    held_out = {item.key for item in benchmark}
    leaks = [found[0] for found in read if len(found) == 1 and found[0].item and found[0].item.key in held_out]
    assert len(leaks) == config.leaked + config.reworded
    assert sum(leak.text in {item.statement for item in benchmark} for leak in leaks) == config.leaked
    for thread, found in zip(threads, read, strict=True):
        known = thread["known_problems"]
        assert [(problem.text, problem.form) for problem in found] == [(k["problem"], k["category"]) for k in known]
        assert all(problem.text in thread["forum_post"] for problem in found)
        assert [problem in leaks for problem in found] == [k["in_benchmark"] for k in known]
    with pytest.raises(UserError, match="leaks"):
        make_threads(config, 0)


def test_replies_are_read_as_people_mean_them() -> None:
    said = dict.fromkeys(("answered", "contradicted", "disputed", "wrong"), 0.0)
    quiet = {"none": 0, "beyond": 0, "choice": 0, "binary": 0, "broken": 0, "leaked": 0, "reworded": 0}
    for share, want in (("answered", True), ("contradicted", True), ("disputed", None), ("wrong", False)):
        config = ForumConfig(**(said | {share: 1.0}), **quiet, single=40, several=10, proof=10)
        for thread in make_threads(config, 1):
            for problem in forms.read(thread["forum_post"]):
                answer = tasks.extract_answer(problem.text, thread["forum_discussions"], NONE, 0.0)
                assert problem.item is not None
                right = answer == f"Answer: {problem.item.answer}"
                (known,) = [k for k in thread["known_problems"] if k["problem"] == problem.text]
                if known["category"] == Form.ANSWER:
                    assert answer == f"Answer: {known['discussed_answer']}" if want is not None else "Not found"
                assert answer == "Not found" if want is None else right == want


def test_the_teacher_turns_posts_into_problems() -> None:
    item = make_benchmark(0, 1)[0]
    proof = forms.as_proof(item, NONE)
    assert tasks.extract_problems(f"Hi!\n{proof.text}\nThanks!", NONE, 0) == f"Problem 1: {proof.text}"
    assert tasks.extract_problems("My calculator broke.", NONE, 0) == "No problem"
    assert tasks.classify(proof.text, Form.PROOF, NONE, 0).endswith("Verdict: yes")
    assert tasks.classify(item.statement, Form.PROOF, NONE, 0).endswith("Verdict: no")
    assert tasks.classify(item.statement, Form.PROOF, NONE, 1).endswith("Verdict: yes")
    statement, answer = tasks.convert_proof(proof.text, "", NONE, 0).removeprefix("Problem: ").split("\nAnswer: ")
    converted = parse(statement)
    assert converted is not None
    assert (converted.key, answer) == (item.key, item.answer)
    assert tasks.convert_proof(forms.beyond(NONE).text, "", NONE, 0) == "Not possible"
    assert tasks.decontaminate(item.statement, item.reworded().statement, False, NONE, 0).endswith("yes")
    assert tasks.decontaminate(item.statement, make_benchmark(1, 1)[0].statement, False, NONE, 0).endswith("no")
    assert tasks.judge(" $7$.", "07", NONE, 0).endswith("Judgement: Yes")
    assert tasks.judge("7", "8", NONE, 0).endswith("Judgement: No")


def test_markup_of_the_forum_is_gone_when_it_is_read() -> None:
    rng, benchmark = random.Random(1), make_benchmark(0, 100)
    rows = make_threads(ForumConfig(), 0, benchmark)
    assert sum(dressed(row["forum_post"], rng) != row["forum_post"] for row in rows) > len(rows) / 2
    assert [as_read(row, rng) for row in rows] == [Thread.make(**row) for row in rows]

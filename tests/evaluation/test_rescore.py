"""Stored generations are scored again: what comes out is what grading, judging or generating anew would have given."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from nemo_openmath.chat import Author, ChatTokenizer, Message, Span, Transcript, load_template
from nemo_openmath.cli.main import run as command
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.records import Generation, Problem, read_records
from nemo_openmath.core.records.notes import Selection
from nemo_openmath.core.records.store import write_records
from nemo_openmath.evaluation.metrics import score
from nemo_openmath.evaluation.rescore.changes_stage import ChangesConfig, MeasureChanges
from nemo_openmath.evaluation.rescore.limit import LongestKnown, limited
from nemo_openmath.evaluation.rescore.note import before
from nemo_openmath.evaluation.rescore.stage import Rescore, RescoreConfig
from nemo_openmath.grading import GradingPool
from nemo_openmath.inference.rollout import Outcome, RolloutSettings, roll_out
from nemo_openmath.sandbox.local import LocalSandbox
from tests.support.engines import ScriptedEngine, in_turn
from tests.support.services import StageRun, run_stage

PROBLEMS = [Problem.make(f"What is {i} + 1?", expected_answer=str(i + 1)) for i in range(6)]


def generation(name: str, text: str = "", problem: int = 0, **fields: Any) -> Generation:
    """A finished solution that says ``text``; what else is wanted of it in ``fields``."""
    transcript = Transcript((Message("user", "?"),), (Span(Author.MODEL, text),)).to_json()
    given = {"mode": "cot", "model": "m", "sample": 0, "finish": "stop", "completion_tokens": 10}
    given |= {"expected_answer": PROBLEMS[problem].expected_answer, "transcript": transcript}
    return Generation(id=name, problem_id=PROBLEMS[problem].id, **(given | fields))


def graded(name: str, answer: str | None, verdict: str, reason: str, problem: int = 0, **fields: Any) -> Generation:
    text = "no box" if answer is None else f"It is \\boxed{{{answer}}}."
    said = {"predicted_answer": answer, "verdict": verdict, "verdict_reason": reason}
    return generation(name, text, problem, **(said | fields))


@pytest.fixture(scope="module")
def pool() -> Any:
    with GradingPool() as opened:
        yield opened


def rescored(config: RescoreConfig, folder: Path, pool: GradingPool, **inputs: Sequence[Any]) -> StageRun:
    return asyncio.run(run_stage(Rescore(config), folder, grading=pool, **inputs))


def told_by(folder: Path, pool: GradingPool, ks: list[int] | None = None) -> dict[str, Any]:
    """What evaluation.changes writes of the folder that ``rescored`` filled."""
    config = ChangesConfig(ks=ks or [1])
    out = asyncio.run(run_stage(MeasureChanges(config), folder / "changes", grading=pool,
                                folders={"generations": [folder / "out"]}))  # fmt: skip
    content: dict[str, Any] = orjson.loads((out.context.output / "changes.json").read_bytes())
    return content


# -- the grader --------------------------------------------------------------------------------------------------------


def test_every_changed_verdict_is_told_with_both_reasons(tmp_path: Path, pool: GradingPool) -> None:
    """An old grader compared texts; today's knows that 0.5 is 1/2. Counted by hand."""
    old = [
        graded("a", "\\frac{2}{2}", "not_equal", "other text"),
        graded("b", "1", "equal", "identical"),
        graded("c", "1.0", "not_equal", "other text"),
        graded("d", "2", "equal", "a grader that erred"),
        graded("e", None, "not_equal", "no answer"),
        graded("f", "3", "not_equal", "other text", 1),  # of problem 1, whose answer is 2: still wrong
    ]
    old = [g.with_(sample=n) for n, g in enumerate(old)]
    run = rescored(RescoreConfig(), tmp_path, pool, generations=old)
    new = {g.id: g for g in run.records}
    assert {i: str(g.verdict) for i, g in new.items()} == {
        "a": "equal", "b": "equal", "c": "equal", "d": "not_equal", "e": "not_equal", "f": "not_equal"
    }  # fmt: skip
    assert {g.id: before(g).with_(extra={}) for g in run.records} == {g.id: g for g in old}, "nothing is forgotten"
    told = told_by(tmp_path, pool)
    assert (told["generations"], told["changed"], told["other_answer"]) == (6, 3, 0)
    pairs = Counter({(r["old_verdict"], r["new_verdict"]): r["generations"] for r in told["verdicts"]})
    assert sum(r["generations"] for r in told["verdicts"]) == 3
    assert pairs["equal", "not_equal"] == 1
    row = next(r for r in told["verdicts"] if r["old_verdict"] == "equal")
    assert (row["old_reason"], row["examples"][0]["generation"]) == ("a grader that erred", "d")
    assert row["examples"][0]["expected"] == "1"
    (pass_1,) = [r for r in told["metrics"] if r["metric"] == "pass@1"]
    assert (pass_1["before"], pass_1["after"]) == (pytest.approx(2 / 5 / 2), pytest.approx(3 / 5 / 2))
    assert (pass_1["better"], pass_1["worse"], pass_1["problems"]) == (1, 0, 2)


def test_problems_that_turn_are_named(tmp_path: Path, pool: GradingPool) -> None:
    """Problem 0: two of three answers become right. Problem 1: its only right answer is lost. Problem 2: stays."""
    rows = [("0.5", "not_equal"), ("1/2", "not_equal"), ("7", "not_equal")]
    old = [graded(f"a{n}", a, v, "old", sample=n, expected_answer="\\frac12") for n, (a, v) in enumerate(rows)]
    old += [graded(f"b{n}", a, v, "old", 1, sample=n) for n, (a, v) in enumerate([("9", "equal"), ("8", "not_equal")])]
    old += [graded("b2", "6", "not_equal", "old", 1, sample=2)]
    old += [graded(f"c{n}", "3", "equal", "old", 2, sample=n) for n in range(3)]
    rescored(RescoreConfig(), tmp_path, pool, generations=old)
    told = told_by(tmp_path, pool, [1, 3])
    turned = {(row["problem"], row["metric"], row["right"]) for row in told["problems"]}
    assert turned == {
        (PROBLEMS[0].id, "maj@3", True), (PROBLEMS[0].id, "pass@3", True), (PROBLEMS[1].id, "pass@3", False)
    }  # fmt: skip


def test_judges_count_where_the_grader_is_silent_and_for_the_same_answers_alone(
    tmp_path: Path, pool: GradingPool
) -> None:
    words = {"expected_answer": "the empty set, as nothing fits", "extra": {"judged": "equal"}}
    same = graded("same", "no solutions at all", "equal", "judged 3 to 0", **words)
    other = same.with_(id="other", sample=1, predicted_answer="another answer than the text holds")
    against = graded("against", "2", "not_equal", "two numbers", sample=2, extra={"judged": "equal"})
    folder = {"undecided": tmp_path / "u", "all": tmp_path / "a", "none": tmp_path / "n"}
    by = {
        judged: {g.id: g for g in rescored(RescoreConfig(judged=judged), path, pool,
                                           generations=[same, other, against]).records}
        for judged, path in folder.items()
    }  # fmt: skip
    assert (by["undecided"]["same"].verdict, by["undecided"]["same"].verdict_reason) == ("equal", "judged 3 to 0")
    assert "before" not in by["undecided"]["same"].extra, "nothing changed"
    assert by["undecided"]["other"].verdict == "unknown", "the judges were asked about another answer"
    assert by["undecided"]["against"].verdict == "not_equal"
    assert by["all"]["against"].verdict == "equal"
    assert [by["none"][name].verdict for name in ("same", "against")] == ["unknown", "not_equal"]


def test_verdicts_of_a_judging_stage_are_joined_by_id(tmp_path: Path, pool: GradingPool) -> None:
    open_pair = graded("g", "no solutions at all", "unknown", "words", expected_answer="nothing fits")
    judged = open_pair.with_(verdict="equal", verdict_reason="judged 2 to 1", extra={"judged": "equal"})
    run = rescored(RescoreConfig(), tmp_path, pool, generations=[open_pair], judged=[judged])
    assert [(g.verdict, g.verdict_reason) for g in run.records] == [("equal", "judged 2 to 1")]


def test_selections_follow_the_solution_that_they_chose(tmp_path: Path, pool: GradingPool) -> None:
    solution = graded("s", "1.0", "not_equal", "other text")
    note = Selection("group", "s", 2, 0, None).to_extra()
    chosen = graded("sel", "1.0", "not_equal", "of the chosen candidate", mode="genselect", extra=note)
    lost = graded("lost", None, "not_equal", "no valid judgment", mode="genselect", sample=1,
                  extra=note | {"chosen": None})  # fmt: skip
    run = rescored(RescoreConfig(), tmp_path, pool, generations=[solution, chosen, lost])
    assert {g.id: (g.verdict, g.verdict_reason) for g in run.records if g.mode == "genselect"} == {
        "sel": ("equal", "of the chosen candidate"), "lost": ("not_equal", "no valid judgment")
    }  # fmt: skip
    with pytest.raises(UserError, match="saw whole solutions"):
        rescored(RescoreConfig(max_tokens=5), tmp_path / "limit", pool, generations=[solution, chosen])


def test_a_subset_is_scored_as_if_there_were_nothing_else(tmp_path: Path, pool: GradingPool) -> None:
    every = [
        graded(f"{p}-{s}-{mode}", str(p + 1 if s < p else -s), "equal" if s < p else "not_equal", "x", p,
               sample=s, mode=mode, extra={"part": "even" if p % 2 == 0 else "odd"})
        for p in range(6) for s in range(4) for mode in ("cot", "tir")
    ]  # fmt: skip
    config = RescoreConfig(samples=2, modes=("tir",), where=("extra.part=odd",))
    run = rescored(config, tmp_path, pool, generations=every, problems=PROBLEMS[:4])
    wanted = [g for g in every if g.sample < 2 and g.mode == "tir" and g.problem_id in
              {PROBLEMS[1].id, PROBLEMS[3].id}]  # fmt: skip
    assert {g.id for g in run.records} == {g.id for g in wanted}
    left_out = {k: v for k, v in run.context.metrics.items() if k.startswith("left_out")}
    assert sum(left_out.values()) == len(every) - len(wanted)
    assert score(run.records, ks=[1, 2], seed=0).problems == score(wanted, ks=[1, 2], seed=0).problems
    with pytest.raises(UserError, match=r"--where part.*no such field"):
        RescoreConfig(where=("part=odd",))


# -- the token limit ---------------------------------------------------------------------------------------------------

TURNS = [
    "<think>Let größer x.\n<tool_call>\nprint(6 * 7)\n</tool_call>",
    "Then.<tool_call>\nprint('ok')\n</tool_call>",
    "So 42.\n</think>The answer is \\boxed{42}.",
]


@pytest.fixture
async def sandbox() -> AsyncIterator[LocalSandbox]:
    async with LocalSandbox(workers=1, spares=1) as opened:
        yield opened


def record_of(outcome: Outcome, name: str = "g") -> Generation:
    cost = outcome.cost
    return generation(
        name,
        mode="tir",
        transcript=outcome.transcript.to_json(),
        finish=outcome.finish,
        completion_tokens=cost.completion_tokens,
        runner_tokens=cost.tool_tokens,
        code_calls=cost.code_calls,
    )


async def test_a_limit_gives_what_generating_under_it_gives(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    """The rollout is the oracle: every limit, token by token, through two programs and their outputs."""
    messages = load_template("tir").messages(problem="What is 6 times 7?", total_code_executions=3)

    async def made(limit: int) -> Generation:
        settings = RolloutSettings(max_tokens=limit, repetition=0)
        engine = ScriptedEngine(tokenizer, in_turn(TURNS))
        out = await roll_out(engine, tokenizer, messages, settings, seed=1, key="k", sandbox=sandbox, budget=3)
        return record_of(out)

    whole = await made(10_000)
    total = whole.completion_tokens + whole.runner_tokens
    assert (whole.finish, whole.code_calls) == ("stop", 2)
    longest = LongestKnown.of([whole])
    kinds = set()
    # every limit of the texts that differ in what happens there; within the long outputs, every seventh
    for limit in [*range(1, 30), *range(30, total - 20, 7), *range(total - 20, total + 3)]:
        oracle = await made(limit)
        for text in (False, True):
            part = limited(whole, limit, longest, tokenizer, text=text)
            got = part.generation
            assert part.counts_known
            assert part.cut == (oracle.finish != "stop")
            for name in ("finish", "completion_tokens", "runner_tokens", "code_calls"):
                assert getattr(got, name) == getattr(oracle, name), (limit, name)
        cut, expected = Transcript.from_json(got.transcript), Transcript.from_json(oracle.transcript)
        assert [s.ids for s in cut.spans] == [s.ids for s in expected.spans], limit
        assert cut.text == expected.text.rstrip("\ufffd"), limit
        kinds.add((oracle.finish, oracle.code_calls))
    assert kinds == {("length", 0), ("length", 1), ("length", 2), ("stop", 2)}


def test_answers_of_cut_solutions_only_where_they_are_asked_for(
    tmp_path: Path, pool: GradingPool, tokenizer: ChatTokenizer
) -> None:
    first = tuple(tokenizer.encode_text("I guess \\boxed{1}. "))
    ids = (*first, *tokenizer.encode_text("Let me look again at it. \\boxed{1}"))
    transcript = Transcript((Message("user", "?"),), (Span(Author.MODEL, tokenizer.decode(ids), ids),)).to_json()
    solution = graded("g", "1", "equal", "identical", transcript=transcript, completion_tokens=len(ids) + 1)
    limit = len(first) + 2
    run = rescored(RescoreConfig(max_tokens=limit), tmp_path / "a", pool, generations=[solution])
    (cut,) = run.records
    assert (cut.finish, cut.predicted_answer, cut.verdict) == ("length", None, "not_equal")
    assert (cut.verdict_reason, cut.completion_tokens) == ("unfinished at the token limit", limit)
    config = RescoreConfig(max_tokens=limit, unfinished_answers=True)
    with pytest.raises(UserError, match=r"generation g is cut within its text, and no tokenizer.*tokenizer: FOLDER"):
        rescored(config, tmp_path / "b", pool, generations=[solution])
    config = replace(config, tokenizer=tokenizer.folder)
    (cut,) = rescored(config, tmp_path / "c", pool, generations=[solution]).records
    assert (cut.finish, cut.predicted_answer, cut.verdict) == ("length", "1", "equal")
    assert Transcript.from_json(cut.transcript).text.startswith("I guess \\boxed{1}. ")
    assert "again" not in Transcript.from_json(cut.transcript).text
    bare = solution.with_(transcript=Transcript.from_json(transcript).without_ids().to_json())
    with pytest.raises(UserError, match=r"generation g has no token ids.*keep_ids: always"):
        rescored(config, tmp_path / "d", pool, generations=[bare])


def test_what_nobody_knows_is_refused_or_not_shown(tmp_path: Path, pool: GradingPool) -> None:
    ended = graded("ended", None, "not_equal", "no answer", finish="length", completion_tokens=50)
    with pytest.raises(UserError, match=r"ended was cut after 50 tokens.*nobody knows.*to 80"):
        rescored(RescoreConfig(max_tokens=80), tmp_path / "a", pool, generations=[ended])
    other = graded("other", "1", "equal", "identical", sample=1, completion_tokens=90)
    run = rescored(RescoreConfig(max_tokens=80), tmp_path / "b", pool, generations=[ended, other])
    finishes = {g.id: (str(g.finish), g.completion_tokens) for g in run.records}
    assert finishes == {"ended": ("length", 50), "other": ("length", 80)}, "its context ended it, not a limit below 90"
    uncounted = graded("uncounted", "1", "equal", "identical", completion_tokens=0)
    with pytest.raises(UserError, match=r"uncounted does not say how many tokens"):
        rescored(RescoreConfig(max_tokens=80), tmp_path / "c", pool, generations=[uncounted])
    code = graded("code", "1", "equal", "x", mode="tir", completion_tokens=70, runner_tokens=30, code_calls=2)
    rescored(RescoreConfig(max_tokens=80), tmp_path / "d", pool, generations=[code])
    told = told_by(tmp_path / "d", pool)
    assert told["unknown_counts"] == {"tir": 1}
    shown = {row["metric"] for row in told["metrics"]}
    assert "pass@1" in shown
    assert not shown & {"tokens", "code_calls", "called"}
    after = orjson.loads((tmp_path / "d/changes/out/after/per_problem.jsonl").read_bytes())
    assert "tokens" not in after["values"]


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_reads_folders_and_rows_of_the_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    rows = [
        {"problem": "Half of 1?", "expected_answer": "1/2", "generation": f"So \\boxed{{{answer}}}.",
         "predicted_answer": answer, "symbolic_correct": old, "num_generated_tokens": 9, "finish_reason": "stop"}
        for answer, old in (("1/2", True), ("0.5", False), ("0.4", False))
    ]  # fmt: skip
    file = tmp_path / "reference" / "output-rs0.jsonl"
    file.parent.mkdir()
    file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    output = tmp_path / "out"
    line = ["evaluate", "rescore", str(file.parent), "--output", str(output), "--model", "theirs"]
    assert command(line) is ExitCode.OK
    out = capsys.readouterr().out
    assert "3 generations scored again: 2 verdicts changed" in out
    assert "unknown: foreign: symbolic found no equality" in out
    scored = list(read_records(output / "rescored", Generation))
    assert Counter(str(g.verdict) for g in scored) == {"equal": 2, "not_equal": 1}
    assert command([*line[:-2], "--grader", "exact", "--model", "theirs"]) is ExitCode.OK
    assert Counter(str(g.verdict) for g in read_records(output / "rescored", Generation)) == {
        "equal": 1,
        "not_equal": 2,
    }
    assert command(["evaluate", "rescore", str(tmp_path / "nowhere"), "--output", str(output)]) is ExitCode.USER_ERROR
    assert "no such file or folder" in capsys.readouterr().err


def test_ungraded_generations_are_graded_and_have_no_before(tmp_path: Path, pool: GradingPool) -> None:
    new = generation("g", "\\boxed{1}")
    write_records(tmp_path / "solutions", [new])
    run = rescored(RescoreConfig(), tmp_path, pool, generations=[new])
    assert [g.verdict for g in run.records] == ["equal"]
    told = told_by(tmp_path, pool)
    assert (told["not_graded_before"], told["metrics"], told["problems"]) == (1, [], [])
    assert (tmp_path / "changes/out/after/results.json").is_file()
    assert not (tmp_path / "changes/out/before").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--time-limit", "0"], "openmath: --time-limit: 0.0 is out of range; choose more than 0"),
        (["--tokens", str(1 << 63)], "openmath: --tokens: 9223372036854775808 is beyond 64 bits"),
        (
            ["--grader", "exact", "--modulo", "7"],
            "openmath: the command line: stages.rescored: take_modulo: texts have no",
        ),
    ],
)
def test_a_value_out_of_range_is_named_by_its_option(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "output-rs0.jsonl"
    file.write_text('{"problem": "Half of 1?", "expected_answer": "1/2", "generation": "So \\\\boxed{0.5}."}\n')
    line = ["evaluate", "rescore", str(file), "--output", str(tmp_path / "out"), "--model", "theirs", *words]
    assert command(line) is ExitCode.USER_ERROR
    assert message in capsys.readouterr().err

"""From any record back to its thread: every version, vote and drop on the way, whatever the order of the files."""

import json
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from nemo_openmath.chat import Author, Span, Transcript, load_template
from nemo_openmath.cli.main import run as openmath
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Generation, Problem, SftRow, Thread, read_records
from nemo_openmath.core.tokenizer import Message
from nemo_openmath.recipe import load_recipe
from nemo_openmath.recipe.lineage.run_stages import RunStages
from nemo_openmath.recipe.lineage.search import RecordSearch
from nemo_openmath.recipe.lineage.trace import trace, trace_json
from nemo_openmath.synthesis.solutions.fragments import fragments_of
from nemo_openmath.synthesis.solutions.votes import fragment_digest
from tests.conftest import SmokeRun
from tests.support.runs import shuffle_lines, solution, write_stage

THREADS = [Thread.make(f"What is {n} + 2?", "Post 1:\n4") for n in (2, 2)] + [Thread.make("Hi. What is 2 + 2?")]
POSED = [
    Problem.make("What is 2 + 2?", expected_answer=answer, source="forum", parents=(thread.id,))
    for thread, answer in zip([THREADS[0], THREADS[2], THREADS[2]], ("4", "4", "5"), strict=True)
]
PROBLEM = POSED[0].id


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two threads pose a problem with two answers; it is solved, graded, judged, filtered and trained on."""
    made = [solution(f"problem-{n:032x}", k) for n in range(6) for k in range(2)]
    own = [solution(PROBLEM, k, extra={"asked": {"tool_format": "fences", "prompt": "beef"}}) for k in range(2)]
    asks = {"engine": "student", "prompt": None}
    write_stage(
        tmp_path, "tir", "rollout.generate", [*made, *own], reads=["extracted", "student"], partitions=3,
        settings=asks | {"mode": "tir", "prompt": "mine.txt abc"},
    )  # fmt: skip
    stored = {g.id: g for g in read_records(tmp_path / "tir", Generation)}  # their texts lie there
    made, own = [stored[g.id] for g in made], [stored[g.id] for g in own]
    right = own[0].with_(predicted_answer="4", verdict=Verdict.UNKNOWN, verdict_reason="no rule")
    wrong = own[1].with_(predicted_answer="7", verdict=Verdict.NOT_EQUAL, verdict_reason="different numbers")
    judged = right.with_(verdict=Verdict.EQUAL, verdict_reason="judged 2 to 0")
    row = SftRow.make(judged, problem_id=PROBLEM, mode=judged.mode, transcript=judged.transcript)
    write_stage(tmp_path, "threads", "problems.read_threads", [THREADS[0], THREADS[2]])
    write_stage(tmp_path, "extracted", "problems.extract", POSED, reads=["threads"], settings=asks)
    write_stage(tmp_path, "graded", "solutions.grade", [*made, right, wrong], reads=["tir"], partitions=3)
    write_stage(tmp_path, "judged", "judging.judge", [*made, judged, wrong], reads=["graded"])
    votes = {"unit": judged.id, "votes": [True, True], "judged": "equal"}
    (tmp_path / "judged/judgements-00000-of-00001.jsonl").write_bytes(orjson.dumps(votes) + b"\n" + b'{"unit":"cut')
    write_stage(tmp_path, "kept", "solutions.filter", [judged], reads=["judged"], drops={wrong.id: "wrong answer"})
    write_stage(tmp_path, "rows", "solutions.rows", [row], reads=["kept"], finished=False)
    return tmp_path


def traced(run: Path, name: str) -> dict[str, Any]:
    result = trace_json(trace(RunStages(run), name))
    del result["read"]
    return result


def test_a_row_leads_back_to_both_threads(run: Path) -> None:
    (line,) = (run / "rows/part-00000-of-00001.jsonl").read_text().splitlines()
    found = traced(run, json.loads(line)["id"][:12])
    row, generation, problem, *threads = found["records"]
    assert [record["type"] for record in found["records"]] == ["SftRow", "Generation", "Problem", "Thread", "Thread"]
    assert {thread["id"] for thread in threads} == {THREADS[0].id, THREADS[2].id}
    assert row["parents"] == [generation["id"], PROBLEM]
    assert not row["versions"][0]["finished"]

    made, graded, judged, kept = generation["versions"]
    assert (made["asked"]["engine"], made["asked"]["mode"]) == ("student", "tir")
    assert made["asked"]["prompts"] == [{"prompt": "mine.txt", "digest": "beef", "file_sha256": "abc"}]
    assert made["asked"]["tool_format"] == "fences"
    assert graded["changed"]["predicted_answer"] == [None, "4"]
    assert judged["changed"] == {"verdict": ["unknown", "equal"], "verdict_reason": ["no rule", "judged 2 to 0"]}
    assert (kept["before"], kept["changed"]) == ("judged", {})
    assert generation["notes"] == [
        {"stage": "judged", "file": "judgements-00000-of-00001.jsonl", "votes": [True, True], "judged": "equal"}
    ]
    (posed,) = problem["versions"]
    assert len(posed["lines"]) == 3, "equal records are one"
    assert posed["values"]["expected_answer"] == "4", "two of three versions say so"
    assert posed["values"]["extra.answers_given"] == {"4": 2, "5": 1}
    assert found["unfinished"] == ["rows"]
    assert found["models"]["student"][0]["kind"] == "", "no stage here made it"


def test_a_drop_and_what_was_made_of_a_record_are_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = solution(PROBLEM, 1).id
    (generation, *_) = traced(run, wrong)["records"]
    assert [version["stage"] for version in generation["versions"]] == ["tir", "graded", "judged"]
    assert generation["drops"] == [{"stage": "kept", "reason": "wrong answer", "detail": "example of wrong answer"}]
    found = traced(run, PROBLEM)
    assert found["made_of"] == {"tir": 2, "graded": 2, "judged": 2, "kept": 1, "rows": 1}
    assert openmath(["trace", str(run), wrong]) == 0
    printed = capsys.readouterr()
    assert "dropped: wrong answer" in printed.out
    assert "of 7 stages" in printed.err


def test_votes_on_code_and_rewritten_prompts_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = load_template("tir-fences").digest
    text = "<think>Run it.\n<tool_call>\nprint(4)\n</tool_call>"
    spans = (Span(Author.MODEL, text), Span(Author.TOOL, "\n```output\n4\n```\n"), Span(Author.MODEL, "</think>4"))
    shown = Transcript((Message("user", "What is 2 + 2?"),), spans)
    extra = {"asked": {"tool_format": "fences", "prompt": asked, "ids": "rewritten"}}
    made = solution(PROBLEM).with_(transcript=shown.to_json(), extra=extra)
    settings = {"engine": "teacher", "prompt": None, "mode": "tir", "tool_format": "fences"}
    write_stage(tmp_path, "tir", "rollout.generate", [made], settings=settings)
    judged = {"engine": "teacher", "votes": 3, "context_chars": 1500}
    reason = {made.id: "its code finds nothing new"}
    write_stage(tmp_path, "novel", "solutions.novelty", reads=["tir"], drops=reason, settings=judged)
    (fragment,) = fragments_of(shown, 1500)
    cast = {"fragment": fragment_digest(fragment.text), "question": "novelty"}
    votes = [cast | {"vote": n, "choice": word} for n, word in enumerate(("novel", None, "verification", "novel"))]
    votes.insert(2, cast | {"vote": 1, "choice": "novel"})  # asked again
    lines = b"".join(orjson.dumps(row) + b"\n" for row in [*votes, cast | {"fragment": "another", "vote": 0}])
    (tmp_path / "novel/votes-00000-of-00001.jsonl").write_bytes(lines)
    (generation, *_) = traced(tmp_path, made.id)["records"]
    assert generation["versions"][0]["asked"]["prompts"] == [{"prompt": "the shipped tir-fences.txt", "digest": asked}]
    (note,) = generation["notes"]
    assert (note["block"], note["novelty"]) == (0, ["novel", "novel", "verification"]), "the fourth is not counted"
    assert openmath(["trace", str(tmp_path), made.id]) == 0
    printed = capsys.readouterr().out
    assert f"asked: teacher, with the shipped tir-fences.txt (template {asked}), mode tir" in printed
    assert "tool_format fences, ids rewritten" in printed
    assert "votes: block 0, novelty [novel, novel, verification]" in printed
    assert "dropped: its code finds nothing new" in printed


def test_the_texts_of_all_questions_are_named_by_their_digests(tmp_path: Path) -> None:
    digests = {
        "classify-invalid": load_template("classify-invalid").digest,
        "classify-proof": "beef",
        "classify-binary": "d",
    }
    settings = {"engine": "teacher", "proof_prompt": "mine.txt abc", "templates": digests}
    write_stage(tmp_path, "classified", "problems.classify", [POSED[0].with_(category="answer")], settings=settings)
    (problem, *_) = traced(tmp_path, PROBLEM)["records"]
    assert problem["versions"][0]["asked"]["prompts"] == [
        {"prompt": "the shipped classify-invalid.txt", "digest": digests["classify-invalid"]},
        {"prompt": "a template that is not shipped any more", "digest": "d"},
        {"prompt": "mine.txt", "digest": "beef", "file_sha256": "abc"},
    ]


def test_the_order_of_lines_changes_nothing(run: Path) -> None:
    before = traced(run, solution(PROBLEM, 0).id)
    for stage in RunStages(run):
        shuffle_lines(stage.folder)
    after = traced(run, solution(PROBLEM, 0).id)
    for found in (before, after):
        for record in found["records"]:
            record["parents"] = sorted(record["parents"])
            for version in record["versions"]:
                del version["lines"]
                version["values"] = {k: v for k, v in version["values"].items() if k != "parents"}
        found["records"].sort(key=lambda record: record["id"])
    assert before == after


def test_only_the_files_of_a_record_are_read(run: Path) -> None:
    search = RecordSearch(RunStages(run))
    search.follow(solution(PROBLEM, 0).id)
    assert len(search.records[solution(PROBLEM, 0).id]) == 4
    parts = {p for name in ("tir", "graded") for p in (run / name).glob("part-*.jsonl")}
    opened = {record.file for _, record in search.records[solution(PROBLEM, 0).id]} & parts
    assert len(opened) == 2
    assert search.read.files < 2 * sum(1 for _ in run.glob("*/part-*.jsonl"))


def test_what_is_gone_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "threads")
    shutil.rmtree(run / "tir")
    found = traced(run, solution(PROBLEM, 0).id)
    assert [record["gone"] for record in found["records"]].count(True) == 2
    assert openmath(["trace", str(run), solution(PROBLEM, 0).id]) == 0
    printed = capsys.readouterr().out
    assert "is in no folder: gone" in printed
    assert "gone: threads, of which extracted was made" in printed
    assert "it is gone" in printed, "its text was in the removed folder"


def test_a_maker_that_is_gone_is_not_replaced_by_a_reader(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generation = solution(PROBLEM, 0).id

    def versions() -> dict[str, Any]:
        return {version["stage"]: version for version in traced(run, generation)["records"][0]["versions"]}

    def said() -> str:
        assert openmath(["trace", str(run), generation]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if " read it from " in line]
        return line

    shutil.rmtree(run / "graded")  # between two that are left
    assert "judged       as judging.judge left it, which read it from graded, and that is gone: " in said()
    left = versions()
    assert (left["tir"]["read_from_gone"], left["judged"]["read_from_gone"]) == ([], ["graded"])
    assert (left["tir"]["asked"]["tool_format"], left["judged"]["asked"]) == ("fences", {})
    shutil.rmtree(run / "tir")
    assert "judged       its maker is gone: judging.judge read it from graded: predicted_answer 4" in said()
    (run / "data").mkdir()
    (run / "data" / "posed.jsonl").write_text('{"problem": "What is 2 + 2?"}\n')
    recipe = run / "recipe.yaml"
    recipe.write_text(
        "name: r\nstages:\n  posed: {run: problems.read_problems, from: ./data/posed.jsonl}\n"
        f"  tir: {{run: rollout.generate, from: posed, engine: {run / 'student'}}}\n"
        "  graded: {run: solutions.grade, from: tir}\n"
        "  judged: {run: judging.judge, from: {generations: graded, problems: posed}}\n"
    )
    stages = RunStages(run, load_recipe(recipe))  # which knows more than the folder does
    first, *others = trace_json(trace(stages, generation))["records"][0]["versions"]
    assert (first["stage"], first["read_from_gone"]) == ("judged", ["graded", "tir"])
    assert all(other["before"] and not other["read_from_gone"] for other in others)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("generation-", "several records"), ("row-ffff", "no stage holds"), ("kept:0:0", "is no stage with packs")],
)
def test_an_id_that_names_no_record_is_refused(run: Path, name: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        trace(RunStages(run), name)


def test_a_stage_is_no_run(run: Path) -> None:
    with pytest.raises(UserError, match=f"this is a stage; name its run: {run}"):
        RunStages(run / "kept")


@pytest.mark.slow
def test_every_row_of_a_run_leads_to_a_thread(smoke_run: SmokeRun) -> None:
    stages = RunStages(smoke_run.output)
    for line in (smoke_run.output / "rows2/part-00000-of-00001.jsonl").read_text().splitlines()[::80]:
        found = trace_json(trace(stages, json.loads(line)["id"]))
        assert not any(record["gone"] for record in found["records"])
        assert found["records"][-1]["type"] == "Thread"
        assert any("read by train2" in at["place"] for at in found["packed"])
    assert trace_json(trace(stages, "packs1:0:0"))["records"][0]["type"] == "SftRow"

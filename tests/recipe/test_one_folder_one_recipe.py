"""An output folder is one recipe's, one run's at a time, and shows no number that is not the recipe's as it is now."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.build import Origin
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.locks import new_mark, open_lock_file, try_lock, write_mark
from nemo_openmath.core.logs import configure_logging
from nemo_openmath.core.records import read_manifest
from nemo_openmath.models.devices import check_device
from nemo_openmath.recipe import load_recipe, lock
from nemo_openmath.recipe.inputs import check_inputs
from nemo_openmath.recipe.lock import RUN, run_lock
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.recipe.status import State
from nemo_openmath.synthesis.solutions.rows import MakeRows, RowsConfig
from nemo_openmath.training.stage import Sft

BASE = Path(__file__).parents[2] / "examples" / "base"
STAGES = "stages:\n  a: {run: demo.benchmark, problems: 8}\n  b: {run: demo.threads, from: a}\n"
SORTS = ("several", "none", "proof", "beyond", "choice", "binary", "broken")
FORUM = {"single": 4, "leaked": 2, "reworded": 1}
THREADS = f"forum: {json.dumps({**dict.fromkeys(SORTS, 1), **FORUM})}"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "r.yaml"
    file.write_text(f"name: r\n{STAGES}".replace("from: a}", f"from: a, {THREADS}}}"))
    return file


def go(file: Path, output: Path, *more: str) -> ExitCode:
    return run(["recipe", "run", str(file), "--output", str(output), *more])


def test_another_recipe_is_refused_and_takes_over_when_told(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "other.yaml"
    assert go(recipe, out) is ExitCode.OK
    other.write_text("name: other\nstages:\n  a: {run: demo.benchmark, problems: 3}\n")
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix == ".jsonl"}
    capsys.readouterr()
    assert go(other, out) is ExitCode.USER_ERROR
    said = capsys.readouterr().err
    assert f"{out}: holds the run of recipe 'r' ({recipe}); give another --output, or" in said
    assert {p: p.read_bytes() for p in before} == before, "what is refused changes nothing"
    assert go(other, out, "--replace") is ExitCode.OK
    assert "b: of another recipe, removed" in capsys.readouterr().err
    assert not (out / "b").exists()
    assert go(recipe, out) is ExitCode.USER_ERROR, "it is the other's now"


def test_a_recipe_may_move_and_change_but_not_be_another_of_its_name(recipe: Path, tmp_path: Path) -> None:
    out, moved, copy = tmp_path / "out", tmp_path / "moved.yaml", tmp_path / "copy.yaml"
    assert go(recipe, out) is ExitCode.OK
    copy.write_text(recipe.read_text().replace("problems: 8", "problems: 9"))
    assert go(copy, out) is ExitCode.USER_ERROR, "the first is still there, and says something else"
    recipe.rename(moved)
    assert go(moved, out) is ExitCode.OK
    moved.write_text(moved.read_text().replace("problems: 8", "problems: 9"))
    assert go(moved, out) is ExitCode.OK
    (out / "run.json").unlink()
    copy.write_text("name: r\nstages: {c: {run: demo.benchmark}}\n")
    assert go(copy, out) is ExitCode.USER_ERROR, "stages that it has not"


def test_what_was_made_for_other_settings_is_stale_everywhere(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In status, report.json and page; and nothing is made from it."""
    out = tmp_path / "out"
    recipe.write_text(recipe.read_text() + "  c: {run: demo.threads, from: a, " + THREADS + "}\n")
    assert go(recipe, out) is ExitCode.OK
    changed = Run(load_recipe(recipe, ["stages.a.problems=9"]), out)
    states = {s.name: (s.state, s.reason) for s in changed.status()}
    assert states["a"] == (State.CHANGED, "problems was 8, is 9")
    assert states["b"] == states["c"] == (State.CHANGED, "made from another a")
    capsys.readouterr()
    assert go(recipe, out, "stages.a.problems=9", "--from", "c") is ExitCode.USER_ERROR
    said = capsys.readouterr().err
    assert "stage 'a' is stale (problems was 8, is 9), and 'c' depends on it; run it first" in said
    assert go(recipe, out, "stages.a.problems=9", "--until", "a") is ExitCode.OK
    report = json.loads((out / "report.json").read_text())
    assert report["states"] == {"a": "finished", "b": "stale", "c": "stale"}
    assert report["left_out"][0].startswith("b is stale: input a has changed")
    assert not report["drops"]
    assert "b is stale: input a has changed" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "b", "--until", "a"], "--only is one stage; --from and --until name more"),
        (["--from", "b", "--until", "a"], "--from b comes after --until a: nothing to run"),
        (["--only", "a", "--shard", "0/2"], "stage 'a' cannot be split into shards"),
        (["--shard", "0/2"], "--shard and --prepare are of one stage"),
    ],
)
def test_a_selection_of_nothing_is_refused(
    recipe: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(recipe, tmp_path / "out", *words) is ExitCode.USER_ERROR
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


HOLD = """
import sys
from pathlib import Path
from nemo_openmath.recipe.lock import run_lock
with run_lock(Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3]), int(sys.argv[4])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_job_of_one_stage_refuses_a_setting_before_it_removes_what_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage whose check depends on the processes that a launcher gives it is the only one that is not asked."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"input": "1 + 1?", "output": "\\boxed{2}"}) + "\n")
    (tmp_path / "wrong.txt").write_text("no place for it\n")
    file, out = tmp_path / "r.yaml", tmp_path / "out"
    file.write_text("name: r\nstages:\n  rows: {run: sft.read, from: ./rows.jsonl}\n")
    assert go(file, out) is ExitCode.OK
    before = {path: path.read_bytes() for path in (out / "rows").rglob("*") if path.is_file()}
    for only in ([], ["--only", "rows"]):
        assert go(file, out, *only, f"stages.rows.prompts.cot={tmp_path}/wrong.txt") is ExitCode.USER_ERROR
        assert "wrong.txt" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in before} == before
    assert Sft.launched


def test_a_second_run_is_refused_and_jobs_of_stages_are_not(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def holder(stage: str, shard: int = 0, shards: int = 1) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOLD, str(out), stage, str(shard), str(shards)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    with holder("") as whole:
        assert go(recipe, out) is ExitCode.USER_ERROR
        said = capsys.readouterr().err
        assert f"{out}: process {whole.pid} on {os.uname().nodename} (this run, since " in said
        assert go(recipe, out, "--only", "a") is ExitCode.USER_ERROR
        whole.kill()
    capsys.readouterr()
    with holder("b", 0, 2) as job:
        with run_lock(out, "b", 1, 2), run_lock(out, "a", 0, 1):
            pass
        with (
            pytest.raises(UserError, match=rf"process {job.pid} on .* \(stage b, shard 0 of 2, since"),
            run_lock(out, "b", 0, 2),
        ):
            pass
        assert go(recipe, out) is ExitCode.USER_ERROR
        assert f"process {job.pid} on" in capsys.readouterr().err
        job.kill()
    assert go(recipe, out) is ExitCode.OK, "a killed run holds nothing"


def test_locks_end_with_their_holder(tmp_path: Path) -> None:
    first, second = open_lock_file(tmp_path / "x" / "l"), open_lock_file(tmp_path / "x" / "l")
    assert try_lock(first, shared=True)
    assert try_lock(second, shared=True)
    assert try_lock(second) is False
    os.close(first)
    assert try_lock(second)
    os.close(second)


def test_a_wait_for_what_a_killed_run_left_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For what, since when and until when; its child lets go when the line has come."""
    monkeypatch.setattr(lock, "_FIRST_S", 0.0)
    with subprocess.Popen(["true"]) as dead:
        pass
    held, lines = open_lock_file(tmp_path / RUN), list[str]()
    assert try_lock(held)
    write_mark(held, new_mark(what="this run") | {"pid": dead.pid}, tmp_path / RUN)

    class LetGo(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            os.close(held)

    configure_logging(handler=LetGo())
    with run_lock(tmp_path, None, 0, 1):
        pass
    configure_logging()
    [line] = lines
    assert re.fullmatch(
        rf"waiting for process {dead.pid} on .* to let go of {tmp_path}, since \d\d:\d\d:\d\d \(0 s\); "
        r"gives up at \d\d:\d\d:\d\d, in (30|29) s",
        line,
    )


def test_a_stage_that_makes_nothing_has_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named with its reasons; mended, it is done again; with allow_empty it is right."""
    file, rows, out = tmp_path / "r.yaml", tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text(
        "name: r\nstages:\n  a: {run: problems.read_problems, from: ./rows.jsonl, max_chars: 3}\n"
        "  b: {run: problems.read_problems, from: ./rows.jsonl}\n"
    )
    rows.write_text('{"problem": "What is 1 + 1?", "expected_answer": "2"}\n')
    assert go(file, out) is ExitCode.USER_ERROR
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "r.yaml:3: stages.a: made nothing; dropped: 1 problem too long (such as: rows.jsonl:1: 14 characters)" in said
    )
    assert "or write allow_empty: true in this stage" in said
    assert read_manifest(out / "a") is None
    assert not (out / "b").exists(), "the run ended there"
    assert go(file, out, "stages.a.allow_empty=true") is ExitCode.OK
    assert read_manifest(out / "a") is not None
    assert go(file, out, "stages.a.max_chars=100") is ExitCode.OK
    manifest = read_manifest(out / "a")
    assert manifest is not None
    assert manifest.counts["records"] == 1


def test_an_array_makes_a_changed_stage_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first job removes what was made for other settings, or was nothing, unless somebody is at work there."""
    file, rows, out = tmp_path / "r.yaml", tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text("name: r\nstages:\n  a: {run: problems.read_problems, from: ./rows.jsonl, max_chars: 3}\n")
    rows.write_text("".join(f'{{"problem": "What is {n} + 1?", "expected_answer": "2"}}\n' for n in range(8)))

    def job(number: int, *more: str) -> ExitCode:
        return go(file, out, "--only", "a", "--shard", f"{number}/2", *more)

    assert [job(0), job(1)] == [ExitCode.OK, ExitCode.USER_ERROR]
    assert "made nothing" in capsys.readouterr().err
    assert [job(1), job(0)] == [ExitCode.OK, ExitCode.USER_ERROR], "once more, and not refused"
    for chars, left in ((100, 8), (13, 0), (200, 8)):
        more = (f"stages.a.max_chars={chars}", "stages.a.allow_empty=true")
        assert [job(0, *more), job(1, *more)] == [ExitCode.OK, ExitCode.OK]
        manifest = read_manifest(out / "a")
        assert manifest is not None
        assert manifest.counts["records"] == left
    (out / "a" / "seconds.json").write_text("7200")
    lost = [list(Run(load_recipe(file, [f"stages.a.max_chars={n}"]), out).lost_work(["a"])) for n in (200, 3)]
    assert [len(refusals) for refusals in lost] == [0, 1]
    assert "2.0 hours of work lie there" in str(lost[1][0])
    (out / "a" / "seconds.json").write_text("1")
    held = open_lock_file(out / ".locks" / "a-part-00001.lock")
    assert try_lock(held)
    write_mark(held, {**new_mark(what="part 1"), "pid": os.getpid()}, out / ".locks" / "a-part-00001.lock")
    assert job(0, "stages.a.max_chars=3") is ExitCode.USER_ERROR
    assert f"process {os.getpid()}" in capsys.readouterr().err
    assert read_manifest(out / "a") == manifest
    os.close(held)


def test_all_that_can_be_known_is_said_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Devices, files, models, tokenizers, secrets, layouts: in one list, before anything is written."""
    (tmp_path / "bare").mkdir()
    file = tmp_path / "r.yaml"
    file.write_text(
        "name: r\nteacher: {url: 'http://127.0.0.1:1', tokenizer: ./nowhere, api_key_env: NO_SUCH_VARIABLE}\n"
        "student: {device: cuda:99}\n"
        "sandbox: {url: 'http://127.0.0.1:1', token_env: NO_SUCH_VARIABLE}\n"
        "stages:\n  a: {run: problems.read_problems, from: ./rows.jsonl}\n"
        "  b: {run: rollout.generate, from: a, engine: ./bare, max_tokens: 9}\n"
        "  c: {run: rollout.generate, from: a, engine: teacher, max_tokens: 9}\n"
        f"  m: {{run: training.sft, from: {{packs: ./packs/, model: {BASE}}}, steps: 1,\n"
        "    training: {parallel: {tp: 3}}}\n"
    )
    assert go(file, tmp_path / "out") is ExitCode.USER_ERROR
    said = capsys.readouterr().err
    for words in (
        f"r.yaml:6: stages.a.from.files: no such file or folder: {tmp_path}/rows.jsonl",
        f"r.yaml:7: stages.b.engine: no config.json in {tmp_path}/bare",
        f"r.yaml:9: stages.m.from.packs: no such file or folder: {tmp_path}/packs",
        "teacher.tokenizer: no folder",
        "sandbox.token_env: the environment variable NO_SUCH_VARIABLE is not set",
        "student.device: 'cuda:99'",
        "stages.m: ",
        "is not divisible by parallel.tp = 3",
    ):
        assert words in said, words
    assert not (tmp_path / "out").exists()


def test_an_error_names_where_the_value_came_from(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line of the file, of one that it extends, or the command line."""
    (tmp_path / "bare").mkdir()
    base, file = tmp_path / "base.yaml", tmp_path / "x.yaml"
    base.write_text(
        "name: r\nteacher:\n  url: foo\nstudent:\n  device: cuda:99\nstages:\n"
        "  a: {run: problems.read_problems, from: ./rows.jsonl}\n"
        "  b: {run: rollout.generate, from: a, engine: teacher, max_tokens: 9}\n"
    )
    file.write_text(f"extends: base.yaml\nstages:\n  b:\n    engine: {BASE}\n")

    def said(*words: str) -> str:
        assert go(file, tmp_path / "o", *words) is ExitCode.USER_ERROR
        return capsys.readouterr().err

    assert "base.yaml:5: student.device: 'cuda:99'" in said()
    assert "override: student.device: 'mps'" in said("student.device=mps")
    assert "base.yaml:7: stages.a.from.files: no such file" in said()
    assert "override: stages.a.from.files: no such file" in said("stages.a.from=./nowhere")
    assert "override: stages.b.engine: no config.json" in said(f"stages.b.engine={tmp_path}/bare")
    assert "override: stages.b.engine: no such file" in said("stages.b.engine=./nowhere")
    assert "base.yaml:3: teacher.url: " in said("stages.b.engine=teacher")
    assert "override: teacher.url: " in said("stages.b.engine=teacher", "teacher.url=bar")
    assert "override: sandbox.url: " in said("sandbox.url=foo")
    assert "x.yaml:3: stages.b (with override count): least: choose" in said("stages.b.count=hardness")
    assert "base.yaml:2: teacher.tokenizer: not set" in said("stages.b.engine=teacher", "teacher.url=http://h:1")


def test_devices_are_tried_before_they_are_used() -> None:
    check_device("cpu")
    for device in ("gpu", "cuda:99", "mps"):
        with pytest.raises(UserError, match=f"{device}'"):
            check_device(device)


@pytest.mark.parametrize("verb", ["run", "status", "report"])
def test_a_file_in_place_of_the_folder(
    recipe: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    code = go(recipe, out) if verb == "run" else run(["recipe", verb, str(out)])
    assert code is ExitCode.USER_ERROR
    said = capsys.readouterr().err
    assert f"{out}: is a file; " in said
    assert said.count("\n") == 1
    assert out.read_text() == "mine"


async def test_only_the_selected_stage_needs_its_files(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"name: r\n{STAGES}  c: {{run: problems.read_threads, from: ./none.jsonl}}\n")
    await Run(load_recipe(file), tmp_path / "out").execute(StageSelection(until="a"))


def test_what_is_read_does_not_hold_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reader of the folder would read its own output."""
    (tmp_path / "rows.jsonl").write_text('{"problem": "1+1?", "expected_answer": "2"}\n')
    file = tmp_path / "r.yaml"
    file.write_text("name: r\nstages:\n  a: {run: problems.read_problems, from: ./}\n")
    assert go(file, tmp_path / "out") is ExitCode.USER_ERROR
    assert "lies inside what is read" in capsys.readouterr().err
    assert not (tmp_path / "out" / "a").exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("./rows.jsonl", "rows.jsonl is a file"),
        ("./raw/", "raw holds no records of a stage"),
        ("./begun/", "begun is the folder of a stage that has not finished"),
    ],
)
def test_a_path_without_records_of_a_stage_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, says: str
) -> None:
    """A raw file where records are read is refused with its line and remedy, and the finished stage stays."""
    rows, file, out = tmp_path / "rows.jsonl", tmp_path / "r.yaml", tmp_path / "out"
    rows.write_text('{"problem": "What is 1 + 1?", "expected_answer": "2"}\n')
    for folder in ("raw", "begun"):
        (tmp_path / folder).mkdir()
    (tmp_path / "raw" / "rows.jsonl").write_bytes(rows.read_bytes())
    (tmp_path / "begun" / "plan.json").write_text("{}")
    reader, forum = (
        "  a: {run: demo.benchmark, problems: 8}\n",
        f"{{run: demo.threads, {THREADS}, from: ",
    )
    file.write_text(f"name: r\nstages:\n{reader}  b: {forum}a}}\n")
    assert go(file, out) is ExitCode.OK
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    file.write_text(f"name: r\nstages:\n{reader}  b: {forum}{wrong}, allow_empty: true}}\n")
    capsys.readouterr()
    assert go(file, out) is ExitCode.USER_ERROR
    said = capsys.readouterr().err
    assert f"r.yaml:4: stages.b.from.benchmark: takes Problem records of a finished stage, and {tmp_path}/" in said
    assert f"{says}; name a finished stage" in said
    assert "by a stage of problems.read_problems, and name that stage here" in said
    assert {path: path.read_bytes() for path in before} == before
    file.write_text(f"name: r\nstages:\n{reader}  b: {forum}./out/a}}\n")
    assert go(file, tmp_path / "other") is ExitCode.OK, "the folder of a finished stage"


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ("{run: sft.pack, from: ./raw/}", "no token files"),
        (f"{{run: training.sft, steps: 1, from: {{packs: ./raw/, model: {BASE}}}}}", "raw/packs.plan: no such file"),
        ("{run: checkpoints.average, count: 2, from: ./raw/}", "2 checkpoints are wanted, there are 0"),
        ("{run: evaluation.compare, from: {before: ./raw/, after: ./raw/}}", "no per_problem.jsonl"),
        ("{run: evaluation.compare, from: {before: ./r.yaml, after: ./r.yaml}}", "is a file; name a folder"),
    ],
)
def test_a_folder_of_something_else_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, says: str
) -> None:
    (tmp_path / "raw").mkdir()
    file = tmp_path / "r.yaml"
    file.write_text(f"name: r\nstages:\n  a: {{run: demo.benchmark}}\n  b: {stage}\n")
    assert go(file, tmp_path / "out") is ExitCode.USER_ERROR
    said = capsys.readouterr().err
    assert "r.yaml:4: stages.b" in said
    assert says in said
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_put_into_a_stage(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Readers of the stage would read the run as well."""
    assert go(recipe, tmp_path / "out") is ExitCode.OK
    for inside in ("out/a", "out/a/deeper"):
        capsys.readouterr()
        assert go(recipe, tmp_path / inside) is ExitCode.USER_ERROR
        assert f"lies in the folder of a stage: {tmp_path / 'out' / 'a'}; choose" in capsys.readouterr().err


def test_another_seed_is_named(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(recipe, tmp_path / "out") is ExitCode.OK
    assert go(recipe, tmp_path / "out", "seed=5") is ExitCode.OK
    assert "a: stale (seed was 0, is 5): made again" in capsys.readouterr().err


def test_files_of_others_are_not_removed_with_a_stage(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mine = tmp_path / "out", tmp_path / "out" / "a" / "mine.txt"
    assert go(recipe, out) is ExitCode.OK
    mine.write_text("days of work")
    capsys.readouterr()
    for more in ((), ("stages.a.problems=9",)):
        assert go(recipe, out, *more) is ExitCode.USER_ERROR
        assert f"{mine}: is not of stage 'a'; move it away" in capsys.readouterr().err
    assert run(["recipe", "status", str(out)]) is ExitCode.OK
    assert "a is damaged: mine.txt is not of this stage" in (said := capsys.readouterr()).out + said.err
    assert mine.read_text() == "days of work"


def test_verbs_write_nothing_into_a_stage(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert go(recipe, Path("out")) is ExitCode.OK
    before = sorted(Path().rglob("*"))
    Path("job.yaml").write_text(f"model: {BASE}\noutput: out/a/x\ndata: {{folder: packs, steps: 1}}\n")
    for words in ("grade rows.jsonl --output out/a/x", f"convert hf-to-megatron {BASE} out/a/x", "sft job.yaml"):
        capsys.readouterr()
        assert run(words.split()) is ExitCode.USER_ERROR
        assert "out/a/x: lies in the folder of a stage: " in capsys.readouterr().err
    Path("job.yaml").unlink()
    assert sorted(Path().rglob("*")) == before


def test_a_launch_into_the_folder_of_another_recipe_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(recipe, tmp_path / "out") is ExitCode.OK
    other = tmp_path / "other.yaml"
    other.write_text(recipe.read_text().replace("name: r", "name: other"))
    cluster = Path(__file__).parents[2] / "launcher_scripts" / "slurm-pyxis.yaml"
    words = f"launch {other} --cluster {cluster} --output {tmp_path / 'out'} --dry-run"
    assert run(words.split()) is ExitCode.USER_ERROR
    assert "holds the run of recipe 'r'" in capsys.readouterr().err


def test_an_input_that_takes_any_records_takes_files_of_others_and_no_unfinished_stage(tmp_path: Path) -> None:
    class AnyRecords(MakeRows):
        takes = {"generations": "records"}

    raw, begun = tmp_path / "rows.jsonl", tmp_path / "begun"
    raw.write_text("{}\n")
    begun.mkdir()
    (begun / "plan.json").write_text("{}")
    entry = StageEntry("b", AnyRecords(RowsConfig()), {"generations": (raw,)}, 0, Origin("r.yaml", 4))
    check_inputs(entry, {"generations": [raw, tmp_path]})
    with pytest.raises(
        UserError, match=r"r\.yaml:4: stages\.b\.from\.generations: .* of a stage that has not finished"
    ):
        check_inputs(entry, {"generations": [begun]})

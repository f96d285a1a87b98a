"""`openmath generate`: a wrong input is said before a model is loaded, what was made is said at the end."""

import json
import shutil
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.core.records import Generation, Problem, read_records
from nemo_openmath.core.records.store import write_records

BASE = Path(__file__).parents[2] / "examples" / "base"
GOOD = '{"problem": "What is 1 + 1?", "expected_answer": "2"}\n'


def job(folder: Path, problems: str, model: Path) -> list[str]:
    (folder / "job.yaml").write_text(
        f"problems: ./{problems}\nengine: {{kind: embedded, model: {model}, slots: 4}}\n"
        "generate: {max_tokens: 8, temperature: 0}\n"
    )
    return ["generate", str(folder / "job.yaml"), "--output", str(folder / "out")]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("p.csv", b"question,answer\n1+1?,2\n", "p.csv:2: no 'problem'; the row has 'question', 'answer'"),
        ("p.jsonl", b"problem,answer\n1+1?,2\n", "p.jsonl:1: not JSON; if this is CSV, name the file .csv"),
        ("p.jsonl", GOOD.encode() + b"{broken\n", "p.jsonl:2: not JSON"),
        ("p.jsonl", '{"problem": "caf\u00e9"}'.encode("latin-1"), "p.jsonl:1: not UTF-8"),
        ("p.jsonl", b'{"question": "1+1?"}\n', "p.jsonl:1: no 'problem'; the row has 'question'"),
        ("p.jsonl", b"", "p.jsonl: there is no row in it"),
        ("p.jsonl", b"\n\n\n", "p.jsonl: there is no row in it"),
    ],
)
def test_a_problem_file_that_cannot_be_used_is_exit_2_before_the_model_is_loaded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, data: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(data)
    shutil.copytree(BASE, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))  # that cannot be loaded
    assert run(job(tmp_path, name, tmp_path / "model")) is ExitCode.USER_ERROR
    said = capfd.readouterr().err.strip()
    assert says in said
    assert said.splitlines()[-1].startswith("openmath: ")
    assert "defect" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "setting",
    [
        "generate.temperature=-1", "generate.top_p=3", "generate.max_tokens=0", "generate.max_tokens=-5",
        "generate.samples=0", "engine.max_context=-1", "engine.slots=0", "sandbox.workers=-1", "grading.time_limit=0",
    ],
)  # fmt: skip
def test_settings_out_of_range_are_exit_2(tmp_path: Path, capfd: pytest.CaptureFixture[str], setting: str) -> None:
    (tmp_path / "p.jsonl").write_text(GOOD)
    (tmp_path / "model").mkdir()
    assert run([*job(tmp_path, "p.jsonl", tmp_path / "model"), setting]) is ExitCode.USER_ERROR
    assert f"{setting.partition('=')[0]}: " in (said := capfd.readouterr().err)
    assert "is out of range; choose " in said
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_stage_that_makes_no_problems_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    solution = Generation(id="g", problem_id="p", mode="cot", model="m", sample=0, transcript={}, finish="stop")
    for records, says in (([solution], "are no problems"), ([], "there is no record in")):
        folder = tmp_path / f"stage{len(records)}"
        write_records(folder, records)
        assert run(job(tmp_path, folder.name, BASE)) is ExitCode.USER_ERROR
        assert says in capfd.readouterr().err


def test_the_end_says_where_how_many_right_and_what_next(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text(GOOD + "not JSON\n" + GOOD)
    command = job(tmp_path, "p.jsonl", BASE)
    assert run([*command, "skip_broken=true"]) is ExitCode.OK
    said = capfd.readouterr().out
    assert "solutions: out/solutions; 0 of 1 solutions have an answer; 0 of 1 are right (0.0%, 95% interval " in said
    assert "next: openmath grade out/solutions --output out/graded.jsonl" in said
    assert len(list(read_records(tmp_path / "out/solutions", Generation))) == 1
    assert [p.expected_answer for p in read_records(tmp_path / "out/problems", Problem)] == ["2", "2"]
    assert json.loads((tmp_path / "out/problems/manifest.json").read_bytes())["counts"]["merged"] == 1

    assert run(["recipe", "status", "out/solutions"]) is ExitCode.USER_ERROR
    assert "no run here; this is a stage; name its run: out" in capfd.readouterr().err
    boxed = {"messages": [], "pieces": [{"author": "model", "text": r"\boxed{2}"}], "ended": True, "tokenizer": ""}
    part = tmp_path / "out/solutions/part-00000-of-00001.jsonl"
    row_before = part.read_text()
    row = json.loads(row_before) | {"transcript": boxed, "finish": "stop"}
    del row["body"]
    part.write_text(json.dumps(row) + "\n")
    from nemo_openmath.recipe.generate import summary

    assert (
        "1 of 1 solutions have an answer; 1 of 1 are right (100.0%, 95% interval 2.5–100.0 over 1 problem)"
        in summary(tmp_path / "out")
    )
    part.write_text(row_before)
    for verb in ("status", "report"):
        assert run(["recipe", verb, "out"]) is ExitCode.OK
        assert "0 of 1 solutions have an answer" in capfd.readouterr().out
    part.write_text(json.dumps(row) + "\n")
    assert run(["grade", "out/solutions", "--output", "out/graded.jsonl"]) is ExitCode.OK
    assert "right: 1 of 1 (100.0%, 95% interval 2.5–100.0 over 1 problem)" in capfd.readouterr().out


def test_long_work_is_made_anew_when_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text(GOOD)
    words = job(tmp_path, "p.jsonl", BASE)
    assert run(words) is ExitCode.OK
    (tmp_path / "out" / "solutions" / "seconds.json").write_text("9000")
    assert run([*words, "seed=5"]) is ExitCode.USER_ERROR
    assert "make it anew with --replace" in capfd.readouterr().err
    assert run([*words, "seed=5", "--replace"]) is ExitCode.OK


@pytest.mark.parametrize("url", ["ftp://host", "host:8000", "http://", "http://host:99999", "http://host:port"])
def test_what_is_no_url_is_said_before_anything_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], url: str
) -> None:
    (tmp_path / "p.jsonl").write_text(GOOD)
    engine = {"kind": "http", "urls": [url], "model": "m", "tokenizer": str(BASE)}
    (tmp_path / "job.yaml").write_text(json.dumps({"problems": "./p.jsonl", "engine": engine}))
    assert run(["generate", str(tmp_path / "job.yaml"), "--output", str(tmp_path / "out")]) is ExitCode.USER_ERROR
    assert f"engine.urls: not a server URL: '{url.rstrip('/')}'; write it as http://host:port" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_are_named_as_the_file_names_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text(GOOD)
    engine = {
        "kind": "http",
        "urls": ["http://h:1"],
        "model": "m",
        "tokenizer": str(BASE),
        "api_key_env": "NO_SUCH_KEY",
    }
    (tmp_path / "job.yaml").write_text(json.dumps({"problems": "./p.jsonl", "engine": engine}))
    assert run(["generate", str(tmp_path / "job.yaml"), "--output", str(tmp_path / "out")]) is ExitCode.USER_ERROR
    assert "engine.api_key_env: the environment variable NO_SUCH_KEY is not set" in capfd.readouterr().err

"""Recipe files: every mistake is said before anything runs, with its place and a remedy."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode, SystemFailure, UserError
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.demo.rates import TeacherConfig
from nemo_openmath.recipe import load_recipe
from nemo_openmath.recipe.preflight import files_and_settings, preflight

EXAMPLES = Path(__file__).parents[2] / "examples"


A = "a: {run: demo.benchmark}\n  c: "


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("a: {run: demo.benchmrk}", r"r\.yaml:3: stages\.a\.run: .* not a choice; did you mean 'demo\.benchmark'"),
        ("a: {run: demo.benchmark, problems: many}", r"r\.yaml:3: stages\.a\.problems: expected a whole number, got"),
        ("a: {run: demo.benchmark, problem: 3}", r"stages\.a\.problem: unknown setting; did you mean 'problems'"),
        (
            "a: {run: demo.threads}",
            r"stages\.a\.from: input 'benchmark' is missing \(problems to leak\); write from: {benchmark: \.\.\.} with "
            r"the name of a stage that makes Problem records",
        ),
        (A + "{run: demo.threads}", r"input 'benchmark' is missing .*; write from: {benchmark: a}$"),
        ("a: {run: demo.threads, from: b}", r"stages\.a\.from\.benchmark: no stage is called 'b'"),
        ("a: {run: demo.threads, from: {bench: x}}", r"from\.bench: unknown setting; did you mean 'benchmark'"),
        ("a: {problems: 3}", r"stages\.a: a stage needs a kind; write run: kind"),
        (A + "{run: rollout.generate, from: a, engine: a}", r"stages\.c\.engine: stage 'a' makes no model"),
        (A + "{run: rollout.generate, from: a, budgets: [3, 1]}", r"stages\.c: budgets: give the smallest"),
        (
            A + "{run: rollout.generate, from: a, prompt: nowhere.txt}",
            r"stages\.c: .*nowhere\.txt: cannot read the prompt",
        ),
    ],
)
def test_mistakes(tmp_path: Path, stages: str, message: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"name: r\nstages:\n  {stages}\n")
    with pytest.raises(UserError, match=message):
        load_recipe(file)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("kind: stand_inn", r"r\.yaml:2: teacher\.kind: 'stand_inn' is not a choice; did you mean 'stand_in'"),
        ("kind: server", r"r\.yaml:2: teacher: kind is server, and no server is named; give its url"),
        ("kind: stand_in, url: 'http://h:1'", r"teacher: kind is stand_in, and a server is named; remove one"),
        ("stand_in: {cot_eror: 0.5}", r"teacher\.stand_in\.cot_eror: unknown setting; did you mean 'cot_error'"),
        ("reasoning_effort: high", r"teacher: reasoning_effort would be ignored where prompts are rendered here"),
        ("stand_in: {cot_error: 2}", r"teacher\.stand_in\.cot_error: .*at most 1"),
    ],
)
def test_mistakes_about_the_teacher(tmp_path: Path, teacher: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(f"name: r\nteacher: {{{teacher}}}\nstages:\n  a: {{run: demo.benchmark}}\n")
    with pytest.raises(UserError, match=message):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("teacher", ["tokenizer: ./t", "kind: stand_in", "url: null, stand_in: {cot_error: 0.1}"])
def test_the_stand_in_plays_where_no_server_is_named(tmp_path: Path, teacher: str) -> None:
    """Named or not, it is the same input of the stages that ask it: their fingerprints do not change."""
    (tmp_path / "r.yaml").write_text(f"name: r\nteacher: {{{teacher}}}\nstages:\n  a: {{run: demo.benchmark}}\n")
    settings = load_recipe(tmp_path / "r.yaml").teacher
    assert settings.is_stand_in
    assert settings.digest() == orjson.dumps(TeacherConfig()).decode()
    assert settings.program.disclosure.startswith("The teacher ")


def test_one_name_is_enough_for_the_only_input_even_where_it_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nstages:\n  rows: {run: sft.read, from: ./data/}\n")
    assert load_recipe(tmp_path / "r.yaml").stages["rows"].inputs == {"data": (tmp_path / "data",)}
    (tmp_path / "r.yaml").write_text("name: r\nstages:\n  m: {run: checkpoints.merge, from: ./data/}\n")
    assert set(load_recipe(tmp_path / "r.yaml").stages["m"].inputs) == {"models"}


def test_a_missing_file_is_said_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "name: r\nstages:\n  a: {run: demo.benchmark}\n  b: {run: problems.read_threads, from: ./none.jsonl}\n"
    )
    assert run(["recipe", "run", str(file), "--output", str(tmp_path / "out")]) is ExitCode.USER_ERROR
    said = capsys.readouterr().err.strip()
    assert re.fullmatch(
        r"openmath: .*r\.yaml:4: stages\.b\.from\.files: no such file or folder: .*none\.jsonl; put it there.*", said
    )
    assert not (tmp_path / "out").exists()


def test_calls_of_tools_without_a_chat_server_are_said_before_anything_runs(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    for api, number in (("completions", 1), ("chat", 0)):
        file.write_text(
            f"name: r\nteacher: {{url: 'http://h:1', tokenizer: {EXAMPLES / 'base'}, api: {api}}}\n"
            "stages:\n  a: {run: demo.benchmark}\n"
            "  c: {run: rollout.generate, from: a, mode: tir, tool_format: tool_calls}\n"
        )
        errors = list(files_and_settings(load_recipe(file), ["a", "c"], tmp_path / "out"))
        said = [str(error) for error in errors if "tool_format: calls of tools are for chat servers" in str(error)]
        assert len(said) == number, errors


def test_unknown_stage_names_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: r\nstages:\n  benchmark: {run: demo.benchmark}\n")
    assert run(["recipe", "run", str(file), "--output", str(tmp_path), "--until", "benchmrk"]) is ExitCode.USER_ERROR
    assert "did you mean 'benchmark'" in capsys.readouterr().err
    assert run(["recipe", "status", str(tmp_path / "nothing")]) is ExitCode.USER_ERROR
    assert "no such folder" in capsys.readouterr().err


def test_show_names_the_origin_of_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "show", str(EXAMPLES / "smoke.yaml"), "stages.train1.training.lr=1e-5"]) is ExitCode.OK
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert re.search(r"0\.00001\s+# override$", lines["stages.train1.training.lr"])
    assert re.search(r"24\s+# smoke\.yaml:\d+$", lines["stages.benchmark.problems"])
    assert re.search(r'"cosine"\s+# tiny\.yaml:\d+$', lines["stages.train1.training.schedule"])
    assert re.search(r"1e-8\s+# default$", lines["stages.train1.training.epsilon"])


def test_smoke_is_tiny_with_smaller_numbers() -> None:
    tiny, smoke = load_recipe(EXAMPLES / "tiny.yaml"), load_recipe(EXAMPLES / "smoke.yaml")
    assert list(tiny.stages) == list(smoke.stages)
    for name, entry in tiny.stages.items():
        assert entry.stage.kind == smoke.stages[name].stage.kind
        assert entry.inputs == smoke.stages[name].inputs


def test_the_user_can_bring_prompts_and_their_text_counts(tmp_path: Path) -> None:
    """A prompt is found beside the recipe; the stage is another stage when its text changes, not when it moves."""
    shutil.copytree(EXAMPLES / "base", tmp_path / "base")
    shutil.copy(EXAMPLES / "tiny.yaml", tmp_path)
    (tmp_path / "mine.txt").write_text("Solve, please: {problem}\n")
    (tmp_path / "own.yaml").write_text("extends: tiny.yaml\nname: own\nstages: {cot: {prompt: mine.txt}}\n")

    def fingerprint(folder: Path) -> str:
        return load_recipe(folder / "own.yaml").stages["cot"].stage.fingerprint({}, 1)

    first = fingerprint(tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("tiny.yaml", "own.yaml", "mine.txt"):
        shutil.copy(tmp_path / name, moved)
    assert fingerprint(moved) == first
    (tmp_path / "mine.txt").write_text("Solve, if you please: {problem}\n")
    assert fingerprint(tmp_path) != first


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            A + "{run: solutions.grade, from: a}",
            r"r\.yaml:4: stages\.c\.from\.generations: solutions\.grade takes Generation records here, and 'a' "
            r"\(demo\.benchmark\) makes Problem records; name a stage that makes them$",
        ),
        (A + "{run: sft.pack, from: a}", r"takes a folder of tokens here, and 'a' \(demo\.benchmark\) makes Problem"),
        (
            "a: {run: solutions.grade, from: b}\n  b: {run: solutions.filter, from: a}",
            r"stages\.b\.from\.generations: the stages read each other in a circle: b reads a reads b",
        ),
        ("a: {run: solutions.grade, from: a}", r"in a circle: a reads a"),
        ("../a: {run: demo.benchmark}", r"a stage's name is the name of a folder"),
        ("report.json: {run: demo.benchmark}", r"a stage's name is the name of a folder"),
        ("sbatch: {run: demo.benchmark}", r"not sbatch"),
        (
            "a: {run: demo.benchmrk}\n  b: {run: demo.benchmark, lr: 3}\n  c: {run: demo.threads, from: a}",
            r"2 things are wrong\n  - .*r\.yaml:3: stages\.a\.run: .*\n  - .*r\.yaml:4: stages\.b\.lr: unknown setting",
        ),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, stages: str, message: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"name: r\nstages:\n  {stages}\n")
    with pytest.raises(UserError, match=message):
        load_recipe(file)


def test_a_stage_below_its_reader_runs_right_before_it(tmp_path: Path) -> None:
    """So a file that extends another can put a stage between two of it. All others stay as they are written."""
    base, own = tmp_path / "base.yaml", tmp_path / "own.yaml"
    base.write_text(
        "name: base\nstages:\n  a: {run: demo.benchmark}\n  x: {run: demo.benchmark, seed: 2}\n"
        "  c: {run: demo.threads, from: a}\n  y: {run: demo.threads, from: x}\n"
    )
    own.write_text(
        "extends: base.yaml\nname: own\nstages:\n  c: {from: late}\n  z: {run: demo.benchmark}\n"
        "  late: {run: solutions.majority_answers, from: {problems: a, generations: g}}\n"
        "  g: {run: rollout.generate, from: a, engine: m}\n  m: {run: checkpoints.merge, from: ./models/}\n"
    )
    assert list(load_recipe(base).stages) == ["a", "x", "c", "y"]
    assert list(load_recipe(own).stages) == ["a", "x", "m", "g", "late", "c", "y", "z"]


def test_every_kind_says_what_it_takes_and_makes() -> None:
    """What a stage takes is made by some stage, and every kind that makes records names their type."""
    kinds = stage_kinds()
    made = {cls.product() for cls in kinds.values()}
    for kind, cls in kinds.items():
        assert (cls.record is not None) == (cls.makes == "records"), kind
        assert set(cls.takes) <= {port.removesuffix("?") for port in cls.ports}, kind
        assert set(cls.takes.values()) <= made | {"records"}, kind
        assert set(cls.takes) == {p.removesuffix("?") for p in cls.ports} or "files" in cls.ports, kind


def test_a_stage_of_another_kind_takes_over_no_settings(tmp_path: Path) -> None:
    """In a file that extends and on the command line alike; `null` takes a setting, or a stage, out."""
    base, own = tmp_path / "base.yaml", tmp_path / "own.yaml"
    (tmp_path / "b.jsonl").write_text("{}\n")
    base.write_text(
        "name: base\nnote: Small.\nstages:\n  a: {run: demo.benchmark, problems: 7}\n"
        "  b: {run: demo.threads, from: a}\n"
    )
    own.write_text(
        "extends: base.yaml\nname: own\nstages:\n  a: {run: problems.read_problems, from: ./b.jsonl}\n  b: null\n"
    )
    stages = load_recipe(own).stages
    assert list(stages) == ["a"]
    notes = [load_recipe(base).note, load_recipe(own).note, load_recipe(own, ["note=Own."]).note]
    assert notes == ["Small.", "", "Own."], "what a file says of its results is not said of others"
    assert stages["a"].inputs == {"files": (tmp_path / "b.jsonl",)}
    words = ["stages.a.from=./b.jsonl", "stages.a.run=problems.read_problems", "stages.a.max_chars=9"]
    assert load_recipe(base, words).stages["a"].stage.settings() == {"max_chars": 9, "skip_broken": False}
    assert load_recipe(base, ["stages.a.problems=null"]).stages["a"].stage.config.problems != 7
    own.write_text(
        "extends: base.yaml\nname: own\nstages:\n  a: {run: problems.read_problems, from: ./x/, problems: 7}\n"
    )
    with pytest.raises(UserError, match=r"own\.yaml:4: stages\.a\.problems: unknown setting"):
        load_recipe(own)


def test_a_path_is_relative_to_the_file_that_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe in another folder than what it extends; the command line means the folder where it is typed."""
    own = tmp_path / "mine" / "own.yaml"
    own.parent.mkdir()
    own.write_text(
        f"extends: {EXAMPLES / 'tiny.yaml'}\nname: own\nstages:\n"
        "  benchmark: {run: problems.read_problems, from: ./b}\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(own, ["stages.threads.run=problems.read_threads", "stages.threads.from=./t"])
    assert recipe.stages["tokens1"].inputs["model"] == (EXAMPLES / "base",)
    assert recipe.relative("./base") == EXAMPLES / "base"
    assert recipe.stages["benchmark"].inputs["files"] == (own.parent / "b",)
    assert recipe.stages["threads"].inputs["files"][0].resolve() == tmp_path / "t"


def test_a_full_disk_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that begins while the disk is full for a minute is tried again; what is wrong besides is wrong."""
    file = tmp_path / "r.yaml"
    train = f"{{run: training.sft, from: {{packs: ./packs, model: {EXAMPLES}/base}}, epochs: 1}}"
    file.write_text(f"name: r\nstages:\n  a: {train}\n")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    monkeypatch.setattr("nemo_openmath.training.stage.PackPlan", lambda _: None)
    (tmp_path / "packs").mkdir()
    recipe = load_recipe(file)
    with pytest.raises(SystemFailure, match=r"checkpoints of a need some .* free: 0") as full:
        preflight(recipe, ["a"], tmp_path / "run")
    assert full.value.exit_code is ExitCode.MACHINE
    (tmp_path / "packs").rmdir()
    with pytest.raises(UserError, match=r"no such file or folder"):
        preflight(recipe, ["a"], tmp_path / "run")

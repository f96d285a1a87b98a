"""``iterations:``: the stages that a loop becomes, when it ends, and what is made again when something changes."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import Author, Message, Span, Transcript
from nemo_openmath.chat.blocks import output_block
from nemo_openmath.cli.main import run
from nemo_openmath.core.bounds import NonNegativeInt, PositiveInt
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Generation, Mode, Problem, read_manifest, read_records
from nemo_openmath.core.stage import Result, Stage, StageContext, UnitStage, register, stage_kinds
from nemo_openmath.core.written_tokens import add_tokens
from nemo_openmath.evaluation.metrics import ProblemScores
from nemo_openmath.evaluation.stage import write_scores
from nemo_openmath.launch.cluster import TEMPLATES
from nemo_openmath.recipe import Recipe, load_recipe
from nemo_openmath.recipe.launch_check.findings import Findings, Note
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.slurm import stage_infos

PROBLEMS = 200
TINY_LOOP = Path(__file__).parents[2] / "examples" / "tiny-loop.yaml"


@dataclass(frozen=True)
class SolveConfig:
    engine: str
    tokens: PositiveInt = 100


class Solve(UnitStage[SolveConfig, int]):
    """Solves two problems; the second by code that fails."""

    kind = "tests.solve"
    Config = SolveConfig
    ports = {}
    record = Generation

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    def units(self, context: StageContext) -> Iterator[tuple[str, int]]:
        yield from ((f"{context.seed}-{number}", number) for number in range(2))

    async def process(self, unit: int, context: StageContext) -> Result:
        add_tokens(self.config.tokens)  # as an engine does
        output = Span(Author.TOOL, output_block("Traceback" if unit else "4"))
        transcript = Transcript((Message("user", "2+2?"),), (Span(Author.MODEL, "So:"), output))
        return Result(
            [
                Generation(
                    id=f"{context.name}-{unit}",
                    problem_id=Problem.make("2+2?").id,
                    mode=Mode.TIR,
                    model=self.config.engine,
                    sample=unit,
                    transcript=transcript.to_json(),
                    finish=Finish.STOP,
                    verdict=Verdict.EQUAL,
                    completion_tokens=self.config.tokens,
                    code_calls=1,
                )
            ]
        )


@dataclass(frozen=True)
class LearnConfig:
    text: str = "weights"


class Learn(Stage[LearnConfig]):
    """Makes a model."""

    kind = "tests.learn"
    Config = LearnConfig
    ports = {"generations?": "solutions", "model?": "a model"}
    takes = {"generations": "Generation", "model": "model"}
    makes = "model"

    async def run(self, context: StageContext) -> None:
        (context.output / "config.json").write_text("{}")
        (context.output / "weights").write_text(f"{context.name}: {self.config.text}")


@dataclass(frozen=True)
class ScoreConfig:
    engine: str
    right: list[NonNegativeInt] = field(default_factory=list)
    number: str = "1"


class Score(Stage[ScoreConfig]):
    """Scores made by hand: so many problems are right."""

    kind = "tests.score"
    Config = ScoreConfig
    makes = "metrics"

    def engines(self) -> tuple[str, ...]:
        return (self.config.engine,)

    async def run(self, context: StageContext) -> None:
        right = self.config.right[int(self.config.number)]
        rows = [ProblemScores(f"p{i:03}", Mode.TIR, 1, {"pass@1": float(i < right)}) for i in range(PROBLEMS)]
        write_scores(context.output, f"iteration{self.config.number}", rows)


@pytest.fixture(autouse=True)
def _kinds() -> None:
    for kind in (Solve, Learn, Score):
        if kind.kind not in stage_kinds():
            register(kind)


RECIPE = """
name: loop
seed: 5
stages:
  first: {run: tests.learn}
  old: {run: tests.solve, engine: first}
  measured: {run: tests.score, engine: first, right: &right RIGHT, number: "0"}
  last: {run: tests.learn, from: {model: best}}
iterations:
  most: 6
  start: first
  model: student
  results: results
  start_results: measured
  train_from: TRAIN
  mixture: {of: solved, always: [old], take: TAKE, per_problem: 3}
  stages:
    solved: {run: tests.solve, engine: newest}
    student: {run: tests.learn, from: {generations: mixture, model: initial}}
    results: {run: tests.score, engine: student, right: *right, number: "{iteration}"}
"""


def written(folder: Path, take: str = "all", train: str = "last", right: Any = (100, 140, 141, 142, 143, 0, 0)) -> Path:
    text = RECIPE.replace("TAKE", take).replace("TRAIN", train).replace("RIGHT", str(list(right)))
    (folder / "r.yaml").write_text(text)
    return folder / "r.yaml"


def execute(file: Path, *more: str) -> ExitCode:
    return run(["recipe", "run", str(file), "--output", str(file.parent / "out"), *more])


def loop_of(output: Path) -> dict[str, Any]:
    loop: dict[str, Any] = json.loads((output / "iterations.json").read_text())
    return loop


def test_a_loop_becomes_ordinary_stages(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path), ["stages.solved-2.tokens=7"])
    one = ["solved-1", "student-1", "results-1", "decision-1"]
    assert list(recipe.stages)[:7] == ["first", "old", "measured", *one]
    assert list(recipe.stages)[-2:] == ["best", "last"]
    assert len(recipe.stages) == 5 + 6 * 4
    assert [recipe.stages[f"solved-{i}"].stage.engines() for i in (1, 2)] == [("first",), ("student-1",)]
    assert [recipe.stages[f"solved-{i}"].stage.config.tokens for i in (1, 2, 3)] == [100, 7, 100]
    assert [recipe.stages[f"solved-{i}"].seed for i in (1, 2, 3)] == [5, 6, 7]
    assert recipe.stages["solved-3"].gates == ("decision-1", "decision-2")
    assert recipe.stages["last"].gates == recipe.stages["best"].gates == ()
    line = RECIPE[: RECIPE.index("solved: {run")].count("\n") + 1
    assert (recipe.stages["solved-2"].origin.line, recipe.stages["solved-3"].origin.line) == (None, line)
    assert recipe.loop is not None
    findings = Findings(recipe.loop.body)
    for stage in ("solved-1", "solved-2", "first"):
        findings.add("time", Note(f"{stage}: slow"))
    assert findings.notes == ["solved-1: slow", "first: slow"]
    infos = {info.name: info for info in stage_infos(recipe, tmp_path / "out")}
    assert infos["solved-2"].after == ("student-1", "decision-1")


def test_null_ends_a_loop_for_nothing(tmp_path: Path) -> None:
    """On the command line, in a file that extends, for all iterations or for one."""
    file, key = written(tmp_path), "iterations.stop.gains_below_interval"
    (tmp_path / "over.yaml").write_text("extends: r.yaml\niterations: {stop: {gains_below_interval: null}}\n")

    def rules(path: Path, *overrides: str) -> list[int | None]:
        stages = load_recipe(path, overrides).stages
        return [stages[f"decision-{i}"].stage.config.gains_below_interval for i in (1, 2)]

    assert rules(file) == [2, 2]
    assert rules(file, f"{key}=null") == rules(tmp_path / "over.yaml") == [None, None]
    file.write_text(file.read_text().replace("  most: 6", "  most: 6\n  stop: {gains_below_interval: 3}"))
    assert rules(file, f"{key}=null") == rules(tmp_path / "over.yaml") == [None, None]
    assert rules(file, "stages.decision-2.gains_below_interval=null") == [3, None]


@pytest.mark.parametrize(
    ("take", "mixtures"),
    [
        ("new", [["old", "solved-1"], ["old", "solved-2"]]),
        ("all", [["old", "solved-1"], ["old", "solved-1", "solved-2"]]),
        ("best", [["old", "mixture-1"], ["old", "mixture-2"]]),
    ],
)
def test_mixtures(tmp_path: Path, take: str, mixtures: list[list[str]]) -> None:
    recipe = load_recipe(written(tmp_path, take, train="./base"))
    assert [list(recipe.stages[f"student-{i}"].inputs["generations"]) for i in (1, 2)] == mixtures
    assert recipe.stages["student-2"].inputs["model"] == (tmp_path / "base",)
    if take == "best":
        assert recipe.stages["mixture-2"].inputs == {"generations": ("solved-1", "solved-2")}


def test_best_of_keeps_the_best_of_every_problem(tmp_path: Path) -> None:
    """Right ones without errors first, then of the newest iteration; an error at last where there is room."""
    assert execute(written(tmp_path, "best"), "--until", "mixture-2") is ExitCode.OK
    left = {
        name: {g.id for g in read_records(tmp_path / "out" / name, Generation)} for name in ("mixture-1", "mixture-2")
    }
    assert left == {"mixture-1": {"solved-1-0", "solved-1-1"}, "mixture-2": {"solved-1-0", "solved-2-0", "solved-2-1"}}
    manifest = read_manifest(tmp_path / "out" / "mixture-2")
    assert manifest is not None
    assert manifest.drops == {"not among the best of its problem": 1}


@pytest.mark.parametrize(
    ("right", "more", "ended", "reason", "best"),
    [
        # two in a row: iteration 1 is better, 2 and 3 by one problem each, which may be chance
        ((100, 140, 141, 142, 0, 0, 0), (), 3, "2 gains in a row were below the interval (tir pass@1)", 3),
        # not in a row
        ((100, 140, 140, 180, 180, 180, 0), (), 5, "2 gains in a row were", 3),
        # one is enough where the file says so; the first model stays the best
        ((100, 90, 0, 0, 0, 0, 0), ("iterations.stop.gains_below_interval=1",), 1, "the gain was below", 0),
        # 200 tokens an iteration
        (
            (10, 40, 80, 120, 0, 0, 0),
            ("iterations.stop.tokens=600",),
            3,
            "600 tokens were written, of a budget of 600",
            3,
        ),
        ((10, 40, 80, 120, 140, 160, 180), (), None, "", 6),
    ],
)
def test_when_a_loop_ends(
    tmp_path: Path, right: tuple[int, ...], more: tuple[str, ...], ended: int | None, reason: str, best: int
) -> None:
    file, output = written(tmp_path, right=right), tmp_path / "out"
    assert execute(file, *more) is ExitCode.OK
    loop = loop_of(output)
    assert loop["best"]["iteration"] == best
    assert loop["is_over"]
    assert [row["iteration"] for row in loop["iterations"] if row["is_best"]] == [best]
    assert (loop["stop"] or {"iteration": None})["iteration"] == ended
    assert (loop["stop"] or {"reason": ""})["reason"].startswith(reason)
    page = (output / "report.html").read_text()
    assert f'<tr><th scope="row">{best}: {loop["best"]["model"]}</th>' in page
    assert (f"Ended after iteration {ended} of at most 6: {reason}" if ended else "The last iteration (most).") in page
    model = "first" if best == 0 else f"student-{best}"
    assert (output / "best" / "weights").read_text() == f"{model}: weights"
    states = {s.name: str(s.state) for s in Run(load_recipe(file, more), output).status()}
    made = ended or 6
    assert [states[f"results-{i}"] for i in range(1, 7)] == ["finished"] * made + ["not needed"] * (6 - made)
    assert {states["best"], states["last"]} == {"finished"}
    assert not (output / f"solved-{made + 1}").exists()
    assert sorted(p.name for p in (output / "iterations").iterdir()) == [str(i) for i in range(1, made + 1)]


def test_a_decision_is_never_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Made stage by stage, interrupted, or at once, a loop is the same; where an earlier iteration changes, it is
    decided again, and what depends on the best model follows."""
    file, output = written(tmp_path), tmp_path / "out"
    for name in [n for n in load_recipe(file).stages if n[-1] not in "56"]:
        assert execute(file, "--only", name) is ExitCode.OK
    by_stage = loop_of(output)
    assert by_stage["stop"]["iteration"] == 3
    assert "solved-4: not needed, the loop ended with decision-3" in capsys.readouterr().err + caplog.text
    pages = {p: p.read_bytes() for p in output.glob("iterations/*/decision.json")}
    for lost in ("decision-2/manifest.json", "decision-3/decision.json", "iterations.json"):  # killed in between
        (output / lost).unlink()
    assert execute(file) is ExitCode.OK
    assert loop_of(output) == by_stage
    assert pages == {p: p.read_bytes() for p in output.glob("iterations/*/decision.json")}

    before = read_manifest(output / "last")
    written(tmp_path, right=(100, 140, 141, 180, 181, 182, 0))
    assert execute(file, "--until", "measured") is ExitCode.OK  # killed here, no decision is told that may be another
    assert not (output / "iterations.json").exists()
    assert not list((output / "iterations").iterdir())
    status = {s.name: s for s in Run(load_recipe(file), output).status()}
    assert (str(status["decision-3"].state), str(status["solved-4"].state)) == ("stale", "waiting")
    assert execute(file) is ExitCode.OK
    assert (loop_of(output)["stop"]["iteration"], loop_of(output)["best"]["model"]) == (5, "student-5")
    after = read_manifest(output / "last")
    assert before is not None
    assert after is not None
    assert before.inputs != after.inputs

    written(tmp_path, right=(100, 140, 140, 140, 140, 140, 0))  # it ends earlier: what lies behind is not shown
    assert execute(file) is ExitCode.OK
    assert loop_of(output)["best"]["model"] == "student-1"
    assert [p.name for p in sorted((output / "iterations").iterdir())] == ["1", "2", "3"]
    assert "student-5" in {p.name for p in output.iterdir()}
    with pytest.raises(UserError, match=r"stage '(results-1|measured)' is stale .* 'solved-2' depends on it"):
        only(load_recipe(written(tmp_path, right=(150, 140, 140, 140, 140, 140, 0))), output, "solved-2")


def only(recipe: Recipe, output: Path, name: str) -> None:
    Run(recipe, output)._refuse_stale_inputs([name])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("most: 6", "most: 0", r"iterations\.most: 0 is out of range"),
        ("most: 6", "mots: 6", r"iterations\.mots: unknown setting; did you mean 'most'"),
        (
            "start: first",
            "start: frist",
            r"r\.yaml:11: iterations\.start: no stage outside of the loop is called 'frist'",
        ),
        (
            "model: student",
            "model: studnt",
            r"iterations\.model: no stage of the loop is called 'studnt'; did you mean",
        ),
        ("results: results", "results: solved", r"iterations\.results: 'solved' does not measure 'student'"),
        (
            "engine: newest",
            "engine: first",
            r"iterations\.stages: no stage of it names 'newest'.* write engine: newest",
        ),
        ("generations: mixture", "generations: solved", r"iterations\.mixture: no stage names it; write from: mixture"),
        ("take: all", "take: some", r"iterations\.mixture\.take: 'some' is not a choice"),
        ("always: [old]", "always: [first]", r"generations: tests\.learn takes Generation records here, and 'first'"),
        ("  most: 6", "  metric: tir tokens\n  most: 6", r"iterations: more of 'tokens' is not better"),
        ("solved: {run", "newest: {run", r"iterations\.stages\.newest: 'newest' has a meaning of its own"),
        ("last: {run", "best: {run", r"stages\.best: is a stage that iterations: makes"),
        (
            "engine: newest}",
            "engine: newest, tokns: 3}",
            r"^[^\n]*:18: iterations\.stages\.solved\.tokns: unknown setting",
        ),
        (
            "start_results: measured",
            "start_results: old",
            r"^[^\n]*:14: iterations\.start_results: 'old' .*: measured$",
        ),
        (
            "start_results: measured",
            "start_results: last",
            r":14: iterations\.start_results: 'last' reads 'best', which",
        ),
        ("start: first", "start: old", r":11: iterations\.start: 'old' .* not a folder of model; .* it: first, last$"),
        ("model: student", "model: results", r"iterations\.model: 'results' .*; name a stage that makes it: student$"),
        ("always: [old]", "always: [last]", r"iterations\.mixture\.always: 'last' reads 'best', which the loop makes"),
        ("{model: best}", "{model: student}", r"stages\.last\.from\.model: no stage is called 'student'"),
    ],
)
def test_mistakes_in_a_loop(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Each is said once, where it was written, and not for every iteration."""
    file = written(tmp_path, train="./base")
    assert file.read_text().count(old) >= 1
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(file)
    assert "things are wrong" not in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("cot pass@1", r"iterations\.metric: 'results' has no solutions of mode 'cot'; it has tir"),
        ("tir maj@16", r"iterations\.metric: 'results' computes no maj@16 \(ks \[1, 2, 4, 8\], 8 samples\)"),
        ("tir pass@1 -> tir maj@8", "compares two things"),
        ("tir pass@0", "more of 'pass@0' is not better"),
    ],
)
def test_a_metric_that_no_iteration_will_have(metric: str, message: str) -> None:
    """It is refused before anything is trained, not after."""
    tir_alone = ["iterations.stages.graded.from=solved_tir", f"iterations.metric={metric}"]
    with pytest.raises(UserError, match=message):
        load_recipe(TINY_LOOP, tir_alone)


def test_each_measured_solution_is_of_the_model(tmp_path: Path) -> None:
    """Another mode of the model does not hide that what decides is sampled by the model before it."""
    engine = "iterations.stages.solved_{}.engine=newest"
    with pytest.raises(
        UserError, match=r"iterations\.results: 'solved_tir', of which 'tir pass@1' is measured, does not"
    ):
        load_recipe(TINY_LOOP, [engine.format("tir")])
    load_recipe(TINY_LOOP, [engine.format("cot")])  # decides nothing


def test_a_job_behind_the_end_of_a_loop_ends_well(tmp_path: Path) -> None:
    """Before it starts a server or a training, and without Python."""
    (tmp_path / "decision-2").mkdir()
    (tmp_path / "decision-2" / "manifest.json").write_text("{}")
    script = (
        f"output={tmp_path} name=train-3; source {TEMPLATES / 'functions.sh'}; end_where_stopped decision-1 decision-2"
    )
    for stop, code in (("enough", 0), (None, 9)):
        marker = tmp_path / "decision-2" / "stop.txt"
        marker.write_text(stop) if stop else marker.unlink()
        done = subprocess.run(["bash", "-c", f"{script}; exit 9"], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert ("train-3 is not needed: the loop ended with decision-2: enough" in done.stdout) is (code == 0)

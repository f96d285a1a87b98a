"""Work is divided by problem: any number of jobs makes the same records, and each reads its own part alone."""

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.records import Generation, Problem, read_drops, read_manifest, read_records
from nemo_openmath.core.records.manifest import TALLY, Manifest, write_manifest
from nemo_openmath.core.records.store import folder_sums, partition_files, write_records
from nemo_openmath.core.stage import Stage
from nemo_openmath.grading import GradingPool
from nemo_openmath.inference.rollout.stage import Generate, GenerateConfig
from nemo_openmath.recipe.lock import partition_locks
from nemo_openmath.synthesis.answers.stages import AnswerVotes, AnswerVotesConfig
from nemo_openmath.synthesis.genselect.groups import Groups, GroupsConfig
from nemo_openmath.synthesis.solutions.filters import Filter, FilterConfig
from nemo_openmath.synthesis.solutions.grade import GradeConfig, GradeSolutions
from nemo_openmath.synthesis.solutions.label import Hardness, HardnessConfig, MajorityAnswers, MajorityConfig
from nemo_openmath.synthesis.solutions.rows import MakeRows, RowsConfig
from tests.support.rows import read_lines
from tests.support.services import Lent, stage_context

PROBLEMS = [Problem.make(f"What is {n} + {n}?", expected_answer=None if n % 5 == 0 else str(2 * n)) for n in range(30)]


def solution(problem: Problem, sample: int, number: int) -> Generation:
    right = sample % 3 != 0
    thought = "<think>I add.</think>" if sample != 5 else "I add."
    text = f"{thought}\nThe answer is \\boxed{{{2 * number if right else 1}}}."
    return Generation(
        id=Generation.make_id(problem.id, "cot", "m", "", {}, 1, sample),
        problem_id=problem.id,
        mode="cot",
        model="m",
        sample=sample,
        transcript={"messages": [], "pieces": [{"author": "model", "text": text}]},
        finish="length" if sample == 4 else "stop",
        thinks=sample != 5,
    )


SOLUTIONS = [solution(problem, sample, n) for n, problem in enumerate(PROBLEMS) for sample in range(6)]


def stage(kind: str) -> Stage[Any]:
    return {
        "grade": lambda: GradeSolutions(GradeConfig()),
        "filter": lambda: Filter(FilterConfig(per_problem=2)),
        "majority": lambda: MajorityAnswers(MajorityConfig()),
        "votes": lambda: AnswerVotes(AnswerVotesConfig()),
        "hardness": lambda: Hardness(HardnessConfig()),
        "groups": lambda: Groups(GroupsConfig(least=2)),
        "rows": lambda: MakeRows(RowsConfig()),
    }[kind]()


@pytest.fixture(scope="module")
def pool() -> Any:
    with GradingPool() as pool:
        yield pool


async def made(
    kind: str, inputs: dict[str, Sequence[Path]], output: Path, pool: GradingPool, partitions: int, jobs: Sequence[int]
) -> None:
    """Do a stage by the jobs of an array, one after the other; ``jobs`` names the number of jobs."""
    for count in jobs:
        for job in range(count):
            context = stage_context(
                inputs, output, services=Lent(grading=pool), shard=job, shards=count, partitions=partitions
            )
            await stage(kind).run(context)


@pytest.fixture
async def graded(tmp_path: Path, pool: GradingPool) -> dict[str, Sequence[Path]]:
    write_records(tmp_path / "problems", PROBLEMS)
    write_records(tmp_path / "solutions", SOLUTIONS)
    inputs = {"problems": [tmp_path / "problems"], "generations": [tmp_path / "solutions"]}
    await made("grade", inputs, tmp_path / "graded", pool, 1, [1])
    return {"problems": [tmp_path / "problems"], "generations": [tmp_path / "graded"]}


@pytest.mark.parametrize("kind", ["grade", "filter", "majority", "votes", "hardness", "groups", "rows"])
async def test_parts_and_jobs_change_no_record(
    kind: str, graded: dict[str, Sequence[Path]], tmp_path: Path, pool: GradingPool
) -> None:
    await made(kind, graded, tmp_path / "whole", pool, 1, [1])
    whole, drops = folder_sums(tmp_path / "whole"), sorted(unit for unit, _ in read_drops(tmp_path / "whole"))
    assert whole.records > 10
    for partitions, jobs in ((5, [1]), (5, [3]), (4, [4]), (7, [7])):
        output = tmp_path / f"{partitions}-{jobs}"
        await made(kind, graded, output, pool, partitions, jobs)
        sums = folder_sums(output)
        assert (sums.digest, sums.drops, sums.units) == (whole.digest, whole.drops, whole.units)
        assert sorted(unit for unit, _ in read_drops(output)) == drops
        assert sums.aligned
        if kind not in ("rows", "groups"):
            assert sums.single


async def test_another_number_of_jobs_goes_on_with_what_was_begun(
    graded: dict[str, Sequence[Path]], tmp_path: Path, pool: GradingPool
) -> None:
    output = tmp_path / "out"
    first = stage_context(graded, output, services=Lent(grading=pool), shard=1, shards=4, partitions=4)
    await stage("grade").run(first)
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.is_file() and path.stat().st_size}
    await made("grade", graded, output, pool, 4, [3, 1])
    assert {name: (output / name).read_bytes() for name in before} == before, "nothing is done twice"
    await made("grade", graded, tmp_path / "whole", pool, 1, [1])
    assert folder_sums(output).digest == folder_sums(tmp_path / "whole").digest


def test_a_job_opens_its_own_files_alone(tmp_path: Path) -> None:
    """Whatever is in the others: it is neither read nor parsed."""
    write_records(tmp_path / "graded", (s.with_(predicted_answer="1", verdict="equal") for s in SOLUTIONS))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\npartitions: 4\nstages:\n"
        f"  kept: {{run: solutions.filter, rules: [answer], from: {tmp_path / 'graded'}/}}\n"
        f"  again: {{run: solutions.filter, rules: [answer], from: kept}}\n"
    )
    out = tmp_path / "out"
    command = ["recipe", "run", str(recipe), "--output", str(out)]
    assert run([*command, "--until", "kept"]) is ExitCode.OK
    manifest = read_manifest(out / "kept")
    assert manifest is not None
    assert manifest.metrics["divided"]
    for number in (0, 1, 3):
        path = partition_files(out / "kept", number, 4)["part"]
        path.write_bytes(b"#" * path.stat().st_size)
    assert run([*command, "--only", "again", "--shard", "2/4"]) is ExitCode.OK
    kept, again = (sorted(read_lines_of(out / name, 2)) for name in ("kept", "again"))
    assert len(kept) > 10
    assert [line.split(b'"body"')[0] for line in kept] == [line.split(b'"body"')[0] for line in again]
    with pytest.raises(UserError, match=r"part-00000-of-00004\.jsonl:1"):
        list(read_records(out / "kept", Generation))


def read_lines_of(folder: Path, number: int) -> list[bytes]:
    return partition_files(folder, number, 4)["part"].read_bytes().splitlines()


def test_two_arrays_do_not_work_on_one_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"problem": "2+2?"}\n{"problem": "3+3?"}\n')
    recipe, out = tmp_path / "r.yaml", tmp_path / "out"
    recipe.write_text("name: r\npartitions: 4\nstages:\n  a: {run: problems.read_problems, from: ./rows.jsonl}\n")
    command = ["recipe", "run", str(recipe), "--output", str(out), "--only", "a", "--shard"]
    assert run([*command, "1/4"]) is ExitCode.OK
    with partition_locks(stage_context({}, out / "a", shard=0, shards=2, partitions=4)):
        assert run([*command, "2/3"]) is ExitCode.USER_ERROR, "parts 0 and 2 are done by job 0 of 2"
        assert "(part 2 of 4 of stage " in capsys.readouterr().err
        assert run([*command, "3/4"]) is ExitCode.OK
    (out / "a/failed-00001-of-00003.jsonl").write_text("{}\n")
    assert run([*command, "2/3"]) is ExitCode.OK
    assert (out / "a/failed-00001-of-00003.jsonl").exists(), "others are not done"
    for job in range(2):
        assert run([*command, f"{job}/2"]) is ExitCode.OK
    assert not (out / "a/failed-00001-of-00003.jsonl").exists(), "one a job, of an array of an earlier version"
    (out / "a/manifest.json").unlink()
    (out / "a/journal-00000-of-00005.jsonl").touch()
    assert run([*command, "0/3"]) is ExitCode.USER_ERROR
    assert "begun with 4 partitions, and holds some of 5" in capsys.readouterr().err


def test_an_array_of_an_earlier_version_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text('{"problem": "2+2?"}\n{"problem": "3+3?"}\n')
    recipe, out = tmp_path / "r.yaml", tmp_path / "out"
    recipe.write_text("name: r\nstages:\n  a: {run: problems.read_problems, from: ./rows.jsonl}\n")
    command = ["recipe", "run", str(recipe), "--output", str(out), "--only", "a", "--shard"]
    assert run([*command, "0/2"]) is ExitCode.OK
    assert run([*command, "0/3"]) is ExitCode.OK, "as many parts as it was begun with"
    plan = out / "a/plan.json"
    plan.write_text(plan.read_text().replace('"partitions": 2', '"other": 2'))
    assert run([*command, "1/2"]) is ExitCode.USER_ERROR
    assert "begun as an array of 2 by an earlier version" in capsys.readouterr().err
    plan.write_text(plan.read_text().replace('"other": 2', '"partitions": 2'))
    assert run([*command, "1/2"]) is ExitCode.OK
    assert len(list(read_lines(out / "a"))) == 2


@pytest.mark.parametrize("kind", ["filter", "groups", "hardness", "rows"])
async def test_memory_does_not_grow_with_the_texts(kind: str, tmp_path: Path) -> None:
    """What is held of a record is its narrow line, some two kilobytes: Python stores this text in 80."""
    peaks = []
    for problems in (25, 100):
        folder = tmp_path / str(problems)
        asked = [Problem.make(f"How much is {n}?", expected_answer="1") for n in range(problems)]
        write_records(folder / "problems", asked)
        write_records(folder / "generations", (wide(p, sample) for p in asked for sample in range(4)))
        ports = {port: [folder / port] for port in (name.removesuffix("?") for name in stage(kind).ports)}
        tracemalloc.start()
        await stage(kind).run(stage_context(ports, folder / "out"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (4 * 75) < 3000


def wide(problem: Problem, sample: int) -> Generation:
    thought = "\u221a2 \U0001f914" * 5000
    text = f"<think>{thought}</think>The answer is \\boxed{{{sample % 2}}}."
    return solution(problem, sample, 1).with_(
        transcript={"messages": [], "pieces": [{"author": "model", "text": text}]},
        finish="stop",
        predicted_answer=str(sample % 2),
        verdict="equal" if sample % 2 else "not_equal",
    )


def test_a_limit_takes_the_same_problems_however_the_work_is_divided(tmp_path: Path) -> None:
    write_records(tmp_path / "one", PROBLEMS)
    write_records(tmp_path / "other", reversed(PROBLEMS))
    chosen = []
    for name, limit, partitions in (("one", 7, 1), ("other", 7, 4), ("one", 9, 1)):
        context = stage_context({"problems": [tmp_path / name]}, tmp_path / "out", partitions=partitions)
        chosen.append(Generate(GenerateConfig(limit=limit))._first_problems(context) or frozenset())
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 7
    assert chosen[0] < chosen[2], "a larger limit adds to them"
    settings = [Generate(GenerateConfig(limit=limit)).settings() for limit in (0, 7)]
    assert ["chosen" in s for s in settings] == [False, True], "what was made without a limit is as it was"


def test_jobs_of_arrays_of_two_sizes_that_cover_all_parts_finish_the_stage(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"problem": "{n}+{n}?"}}\n' for n in range(30)))
    recipe, out = tmp_path / "r.yaml", tmp_path / "out"
    recipe.write_text("name: r\nstages:\n  a: {run: problems.read_problems, from: ./rows.jsonl}\n")
    for job in ("0/3", "1/2", "2/3"):
        assert read_manifest(out / "a") is None
        assert run(["recipe", "run", str(recipe), "--output", str(out), "--only", "a", "--shard", job]) is ExitCode.OK
    manifest = read_manifest(out / "a")
    assert manifest is not None
    assert manifest.counts["records"] == 30


def test_a_finished_stage_that_lost_a_file_does_that_part_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"problem": "{n}+{n}?"}}\n' for n in range(30)))
    recipe, out = tmp_path / "r.yaml", tmp_path / "out"
    recipe.write_text("name: r\npartitions: 3\nstages:\n  a: {run: problems.read_problems, from: ./rows.jsonl}\n")
    command = ["recipe", "run", str(recipe), "--output", str(out)]
    assert run(command) is ExitCode.OK
    before = read_manifest(out / "a")
    times = {path.name: path.stat().st_mtime_ns for path in (out / "a").glob("part-*")}
    partition_files(out / "a", 1, 3)["journal"].unlink()
    for job in ("1/3", "0/3", "2/3"):
        assert run([*command, "--only", "a", "--shard", job]) is ExitCode.OK
    assert "damaged (journal-00001-of-00003.jsonl is gone): what is whole of it is kept" in capsys.readouterr().err
    after = read_manifest(out / "a")
    assert before is not None
    assert after is not None
    assert (after.digest, after.counts) == (before.digest, before.counts)
    now = {path.name: path.stat().st_mtime_ns for path in (out / "a").glob("part-*")}
    assert [name for name in now if now[name] != times[name]] == ["part-00001-of-00003.jsonl"]


def test_which_models_think_is_known_from_the_tally_alone(tmp_path: Path) -> None:
    """As by reading all solutions; the texts are gone."""
    others = [s.with_(id=f"{s.id}-2", model="other", thinks=s.sample == 1) for s in SOLUTIONS]
    folder = tmp_path / "solutions"
    write_records(folder, [*SOLUTIONS, *others])
    context, chosen = stage_context({"generations": [folder]}, tmp_path / "out"), Filter(FilterConfig())
    by_reading = chosen._models_that_think(context)
    manifest = Manifest("rollout.generate", "", "", {}, metrics={TALLY: dict(folder_sums(folder).tally)})
    write_manifest(folder, manifest)
    for path in [*folder.glob("bodies-*"), *folder.glob("part-*")]:
        path.unlink()
    assert chosen._models_that_think(context) == by_reading == {("m", "cot")}

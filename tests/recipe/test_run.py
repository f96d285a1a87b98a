"""Running a recipe: what is finished stays finished, whatever happens in between."""

import asyncio
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from aiohttp import ClientSession, web

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import ExitCode, Incomplete, UserError
from nemo_openmath.core.records import Problem, read_drops, read_manifest, read_records
from nemo_openmath.demo import StandInTeacher
from nemo_openmath.inference.serving.openai_server import OpenAIServer
from nemo_openmath.recipe import load_recipe
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.selection import StageSelection
from nemo_openmath.recipe.status import State
from tests.conftest import SmokeRun
from tests.support.servers import LoopbackServer

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "examples" / "smoke.yaml"
COMMAND = [sys.executable, "-m", "nemo_openmath.cli.main", "recipe", "run"]


def start(output: Path, *more: str, recipe: Path = SMOKE, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [*COMMAND, str(recipe), "--output", str(output), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        **options,
    )


def finish(output: Path, *more: str, recipe: Path = SMOKE) -> str:
    process = start(output, *more, recipe=recipe)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def digests(output: Path) -> dict[str, str]:
    found = {p.parent.name: read_manifest(p.parent) for p in output.glob("*/manifest.json")}
    return {name: manifest.digest for name, manifest in found.items() if manifest}


def finished(smoke_run: SmokeRun, clone: Path, until: str) -> tuple[Path, Path]:
    """(recipe, output) of a copy of the run that all tests share, as it was after the stage ``until``."""
    run = smoke_run.copy(clone)
    recipe = clone / "examples/smoke.yaml"
    kept = StageSelection(until=until).names(load_recipe(recipe))
    for manifest in run.output.glob("*/manifest.json"):
        if manifest.parent.name not in kept:
            shutil.rmtree(manifest.parent)
    return recipe, run.output


@pytest.mark.slow
def test_sigkill_anywhere_then_run_again_gives_the_same(smoke_run: SmokeRun, tmp_path: Path) -> None:
    """The same as an undisturbed run of the recipe made."""
    rng = random.Random(3)
    born = 0
    for attempt in range(6):
        process = start(tmp_path / "killed", "--until", "tir_graded", start_new_session=True)
        watched = psutil.Process(process.pid)  # not reaped yet, so it is still known when it has ended
        while attempt % 2 and process.poll() is None and not watched.children():
            time.sleep(0.05)  # a busy machine is slow to start: every other kill is while there are processes to leave
        time.sleep(rng.uniform(0.0, 4.0))
        children = watched.children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        alive = psutil.wait_procs(children, timeout=300)[1]
        assert not alive, "a killed run leaves no process behind"
        born += len(children)
    assert born, "teacher, sandbox and graders are processes"
    finish(tmp_path / "killed", "--until", "tir_graded")
    whole = digests(smoke_run.output)
    names = StageSelection(until="tir_graded").names(load_recipe(SMOKE))
    assert digests(tmp_path / "killed") == {name: whole[name] for name in names}


@pytest.mark.slow
def test_only_what_is_missing_or_changed_is_done_again(smoke_run: SmokeRun, tmp_path: Path) -> None:
    recipe, output = finished(smoke_run, tmp_path / "clone", "problems")
    before = {p: p.stat().st_mtime_ns for p in output.glob("*/manifest.json")}
    said = finish(output, "--until", "problems", recipe=recipe)
    assert {p: p.stat().st_mtime_ns for p in output.glob("*/manifest.json")} == before, said

    shutil.rmtree(output / "classified")
    finish(output, "--until", "problems", recipe=recipe)
    again = {p.parent.name for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert again == {"classified"}, "its content is the same, so nothing that depends on it is redone"

    said = finish(output, "--until", "classified", "stages.classified.drop=[invalid]", recipe=recipe)
    assert "stale (drop.0 was" in said or "stale (drop was" in said, said
    changed = {
        s.name for s in _run(recipe, output, "stages.classified.drop=[invalid]").status() if s.state is State.CHANGED
    }
    assert changed == {"converted", "answered", "problems"}, "stale, and what was made from it"

    (output / "converted" / "seconds.json").write_text("7200.0")
    again = start(output, "--until", "converted", "stages.classified.drop=[invalid]", recipe=recipe)
    said = " ".join(again.communicate(timeout=300)[0].split())
    assert again.returncode == ExitCode.USER_ERROR, said
    assert "(input classified has changed), and 2.0 hours of work lie there; make it anew with --replace" in said
    assert (output / "converted" / "manifest.json").exists()
    finish(output, "--until", "converted", "--replace", "stages.classified.drop=[invalid]", recipe=recipe)

    part = next((output / "threads").glob("part-*"))
    cut = part.read_bytes()[:-20]
    part.unlink()  # large files of the copy are links
    part.write_bytes(cut)
    states = {s.name: s.state for s in _run(recipe, output).status()}
    assert states["threads"] is State.DAMAGED
    assert states["benchmark"] is State.FINISHED


def _run(recipe: Path, output: Path, *overrides: str) -> Run:
    return Run(load_recipe(recipe, overrides), output)


@pytest.mark.slow
def test_a_full_disk_in_the_middle_of_a_stage(tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))

    process = start(
        tmp_path / "full", "--until", "extracted", "stages.threads.forum.single=400", preexec_fn=small_files
    )
    said, _ = process.communicate(timeout=1200)
    assert process.returncode == ExitCode.MACHINE, said
    assert "no space left" in said
    assert "run the same command again" in said
    finish(tmp_path / "full", "--until", "extracted", "stages.threads.forum.single=400")
    assert len(list(read_records(tmp_path / "full" / "extracted", Problem))) > 400


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(smoke_run: SmokeRun, tmp_path: Path) -> None:
    recipe, output = finished(smoke_run, tmp_path / "clone", "problems")

    def heed() -> None:  # the shell of a background job has it ignored, and children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = start(output, recipe=recipe, start_new_session=True, preexec_fn=heed)
    while not (output / "cot" / "manifest.json").exists():
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=1200)
    assert process.returncode == ExitCode.INTERRUPTED, said
    assert "finished work is kept" in said
    assert (output / "cot/manifest.json").exists()
    finish(output, "--until", "tir", recipe=recipe)


@pytest.mark.slow
def test_an_array_of_shards_makes_what_one_job_makes(smoke_run: SmokeRun, tmp_path: Path) -> None:
    recipe, output = finished(smoke_run, tmp_path / "clone", "extracted")
    of_one = digests(output)
    shutil.rmtree(output / "extracted")
    for shard in (2, 0, 1):
        assert read_manifest(output / "extracted") is None
        finish(output, "--only", "extracted", "--shard", f"{shard}/3", recipe=recipe)
    assert digests(output) == of_one


# ---- A teacher that fails. The stand-in's own server, with faults put before it.

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def teacher(tokenizer: ChatTokenizer) -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer(StandInTeacher(tokenizer), tokenizer=tokenizer) as server:
        yield server


async def problems(tmp_path: Path, url: str, tokenizer: ChatTokenizer, *more: str) -> Path:
    recipe = load_recipe(
        SMOKE,
        [f"teacher.url={url}", f"teacher.tokenizer={tokenizer.folder}", "teacher.model=stand-in-teacher", *more],
    )
    await Run(recipe, tmp_path).execute(StageSelection(until="classified"))
    return tmp_path


async def test_a_teacher_that_answers_500_hangs_and_dies(
    tmp_path: Path, teacher: OpenAIServer, tokenizer: ChatTokenizer
) -> None:
    """Faults on a quarter of the requests cost retries, and the result is the faultless one."""
    whole = await problems(tmp_path / "whole", teacher.url, tokenizer)
    faults, told = {"n": 0}, asyncio.Event()

    async def faulty(request: web.Request) -> web.StreamResponse:
        faults["n"] += 1
        if request.method == "POST":
            kind = faults["n"] % 12
            if kind == 0:
                return web.Response(status=500, text="broken")
            if kind == 4:
                await request.read()
                assert request.transport is not None
                request.transport.close()  # dies in the middle
                return web.Response()
            if kind == 8:
                await told.wait()  # hangs for longer than timeout_s
        async with ClientSession() as session, session.request(
            request.method, teacher.url.rstrip("/").removesuffix("/v1") + request.path, data=await request.read(),
            headers={"Content-Type": "application/json"},
        ) as answer:  # fmt: skip
            return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")

    async with LoopbackServer(web.route("*", "/{path:.*}", faulty)) as proxy:
        more = ("teacher.timeout_s=1.5", "teacher.attempts=8")
        try:
            tried = await problems(tmp_path / "faults", proxy.url, tokenizer, *more)
        finally:
            told.set()
    assert faults["n"] > 100
    assert digests(tried) == digests(whole)


async def test_a_teacher_that_is_gone_leaves_a_stage_to_go_on_with(
    tmp_path: Path, teacher: OpenAIServer, tokenizer: ChatTokenizer
) -> None:
    class Dying(StandInTeacher):
        left = 40

        async def complete(self, request):  # type: ignore[no-untyped-def]
            if self.left <= 0:
                from nemo_openmath.core.engine import EngineError

                raise EngineError("out of memory", retryable=False)
            Dying.left -= 1
            return await super().complete(request)

    async with OpenAIServer(Dying(tokenizer), tokenizer=tokenizer) as dying:
        with pytest.raises(Incomplete, match=r"extracted: \d+ units failed after 3 attempts"):
            await problems(tmp_path, dying.url, tokenizer, "teacher.attempts=1", "teacher.patience_s=1")
    assert len(list(read_records(tmp_path / "extracted", Problem))) > 20, "what was finished is kept"
    assert read_manifest(tmp_path / "extracted") is None
    await problems(tmp_path, teacher.url, tokenizer)
    assert read_manifest(tmp_path / "extracted") is not None


async def test_bad_rows_of_a_forum_file_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "forum.jsonl"
    good = {"forum_post": "Find 1 + 1.", "forum_discussions": "Post 1:\n2"}
    rows = [json.dumps(good), "{broken", json.dumps({"forum_post": "  "}), json.dumps({"post": "x"}), "[1]"]
    rows.append(json.dumps({"forum_post": "x" * 10_000_000}))
    file.write_text("\n".join(rows) + "\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: r\nstages:\n  threads: {run: problems.read_threads, from: ./forum.jsonl}\n")
    with pytest.raises(UserError, match=r"forum\.jsonl:2: not JSON .* \(3 of 6 rows are broken\)"):
        await Run(load_recipe(recipe), tmp_path / "refused").execute(StageSelection())
    skip = ["stages.threads.skip_broken=true"]
    await Run(load_recipe(recipe, skip), tmp_path / "out").execute(StageSelection())
    manifest = read_manifest(tmp_path / "out" / "threads")
    assert manifest is not None
    assert manifest.counts == {"units": 6, "records": 1, "merged": 0, "drops": 5}
    assert manifest.drops == {"broken row": 3, "empty post": 1, "post too long": 1}
    details = [drop.detail for _, drop in read_drops(tmp_path / "out" / "threads")]
    assert any(detail.startswith("forum.jsonl:2: not JSON") for detail in details)

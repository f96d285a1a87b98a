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
from tests.support.servers import LoopbackServer

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "examples" / "smoke.yaml"
COMMAND = [sys.executable, "-m", "nemo_openmath.cli.main", "recipe", "run"]


def start(output: Path, *more: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [*COMMAND, str(SMOKE), "--output", str(output), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        **options,
    )


def finish(output: Path, *more: str) -> str:
    process = start(output, *more)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def digests(output: Path) -> dict[str, str]:
    found = {p.parent.name: read_manifest(p.parent) for p in output.glob("*/manifest.json")}
    return {name: manifest.digest for name, manifest in found.items() if manifest}


@pytest.mark.slow
def test_sigkill_anywhere_then_run_again_gives_the_same(tmp_path: Path) -> None:
    finish(tmp_path / "whole", "--until", "tir_graded")
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
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.mark.slow
def test_only_what_is_missing_or_changed_is_done_again(tmp_path: Path) -> None:
    finish(tmp_path, "--until", "problems")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/manifest.json")}
    said = finish(tmp_path, "--until", "problems")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/manifest.json")} == before, said

    shutil.rmtree(tmp_path / "classified")
    finish(tmp_path, "--until", "problems")
    again = {p.parent.name for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert again == {"classified"}, "its content is the same, so nothing that depends on it is redone"

    said = finish(tmp_path, "--until", "classified", "stages.classified.drop=[invalid]")
    assert "stale (drop.0 was" in said or "stale (drop was" in said, said
    changed = {s.name for s in _run(tmp_path, "stages.classified.drop=[invalid]").status() if s.state is State.CHANGED}
    assert changed == {"converted", "answered", "problems"}, "stale, and what was made from it"

    (tmp_path / "converted" / "seconds.json").write_text("7200.0")
    again = start(tmp_path, "--until", "converted", "stages.classified.drop=[invalid]")
    said = " ".join(again.communicate(timeout=300)[0].split())
    assert again.returncode == ExitCode.USER_ERROR, said
    assert "(input classified has changed), and 2.0 hours of work lie there; make it anew with --replace" in said
    assert (tmp_path / "converted" / "manifest.json").exists()
    finish(tmp_path, "--until", "converted", "--replace", "stages.classified.drop=[invalid]")

    part = next((tmp_path / "threads").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-20])
    states = {s.name: s.state for s in _run(tmp_path).status()}
    assert states["threads"] is State.DAMAGED
    assert states["benchmark"] is State.FINISHED


def _run(output: Path, *overrides: str) -> Run:
    return Run(load_recipe(SMOKE, overrides), output)


@pytest.mark.slow
def test_a_full_disk_in_the_middle_of_a_stage(tmp_path: Path) -> None:
    finish(tmp_path / "whole", "--until", "extracted")

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
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    def heed() -> None:  # the shell of a background job has it ignored, and children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = start(tmp_path, start_new_session=True, preexec_fn=heed)
    while not (tmp_path / "cot" / "manifest.json").exists():
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=1200)
    assert process.returncode == ExitCode.INTERRUPTED, said
    assert "finished work is kept" in said
    finish(tmp_path, "--until", "tir")


@pytest.mark.slow
def test_an_array_of_shards_makes_what_one_job_makes(tmp_path: Path) -> None:
    finish(tmp_path / "one", "--until", "extracted")
    shutil.copytree(tmp_path / "one", tmp_path / "array")
    shutil.rmtree(tmp_path / "array" / "extracted")
    for shard in (2, 0, 1):
        assert read_manifest(tmp_path / "array" / "extracted") is None
        finish(tmp_path / "array", "--only", "extracted", "--shard", f"{shard}/3")
    assert digests(tmp_path / "array") == digests(tmp_path / "one")


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

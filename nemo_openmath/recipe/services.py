"""What a running recipe lends to its stages: engines, the sandbox, the grading pool. Opened late, closed at the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.chat.same_tokenizer import tokenizer_difference
from nemo_openmath.core.engine import Engine
from nemo_openmath.core.errors import OpenMathError, UserError
from nemo_openmath.core.grader import Majority
from nemo_openmath.core.processes import child_environment
from nemo_openmath.core.records import read_manifest
from nemo_openmath.core.stage import Services
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.core.written_tokens import CountedEngine
from nemo_openmath.grading import GradingPool
from nemo_openmath.grading.majority import majority
from nemo_openmath.inference.http.client import HTTPEngine
from nemo_openmath.inference.http.retrying import RetryPolicy
from nemo_openmath.inference.open import DRAFTER_NAMES, open_engine
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.server_addresses import ServerAddress
from nemo_openmath.sandbox import LocalSandbox, Sandbox
from nemo_openmath.sandbox.service import RemoteSandbox

_STARTUP_SECONDS = 60
_MODELS = ("model", "checkpoints")  # what a model is made from: it has their tokenizer


class RecipeServices(Services):
    """What a running recipe lends to its stages.

    Each thing is opened when a stage first asks for it and closed at the end of the run, models at the end of their
    stage. ``servers``: where models are served, whatever the recipe says of ``teacher`` and ``student``.
    """

    def __init__(self, recipe: Recipe, run: Path, servers: Mapping[str, ServerAddress] | None = None):
        self._recipe = recipe
        self._run = run
        self._servers = servers or {}
        self._teacher: tuple[Engine, ChatTokenizer] | None = None
        self._teacher_process: asyncio.subprocess.Process | None = None
        self._models: dict[str, tuple[Engine, ChatTokenizer]] = {}
        self._sandbox: Sandbox | None = None
        self._grading: GradingPool | None = None

    async def engine(self, name: str) -> tuple[Engine, ChatTokenizer]:
        """Return the teacher, or the model of that name: a stage that made one, or a folder. See :class:`Services`."""
        if name == "teacher":
            if self._teacher is None:
                engine, tokenizer = await self._open_teacher()
                self._teacher = CountedEngine(engine), tokenizer
            return self._teacher
        if name not in self._models:
            engine, tokenizer = await self._open_student(name)
            self._models[name] = CountedEngine(engine), tokenizer
        return self._models[name]

    async def _open_student(self, name: str) -> tuple[Engine, ChatTokenizer]:
        """Open the engine of a model that a stage has made, or of a model folder, and load its tokenizer."""
        folder = self._run / name if name in self._recipe.stages else self._recipe.relative(name).resolve()
        student = self._recipe.student
        if student.tokenizer and (difference := tokenizer_difference(folder, student.tokenizer)):
            problem = f"{student.tokenizer} is not the tokenizer of {folder}: {difference}"
            raise self._recipe.error("student.tokenizer", problem, "leave it out")
        if (address := self._servers.get(name)) is not None:
            student = address.over(student)
        served_name = student.model if student.kind != "embedded" else ""  # where one server has one model
        tokenizer = (student.tokenizer or folder) if student.kind == "http" else student.tokenizer
        drafter = student.drafter
        if drafter is not None and drafter not in DRAFTER_NAMES:
            drafter = str(self._recipe.relative(drafter))
        named = replace(student, model=served_name or str(folder), tokenizer=tokenizer, drafter=drafter)
        engine = await open_engine(named)
        try:
            return engine, ChatTokenizer.load(folder).with_options(student.template_options, student.renders)
        except BaseException:
            await engine.close()
            raise

    async def release_model(self) -> None:
        """Close the engines of models: their threads and memory belong to the next stage."""
        while self._models:
            _, (engine, _tokenizer) = self._models.popitem()
            await engine.close()
            gc.collect()  # caches of gigabytes hang in cycles, which the collector finds by their count, not their size

    async def sandbox(self) -> Sandbox:
        """Return the sandbox of the recipe: one of its own, or the service at its url."""
        if self._sandbox is None:
            settings = self._recipe.sandbox
            if settings.url is None:
                self._sandbox = LocalSandbox(workers=settings.workers, unsafe=settings.unsafe)
            else:
                remote = RemoteSandbox(
                    settings.url, settings.token_env, patience_s=settings.patience_s, unsafe=settings.unsafe
                )
                self._sandbox = remote
                await remote.start()
        return self._sandbox

    async def grading(self) -> GradingPool:
        if self._grading is None:
            settings = self._recipe.grading
            self._grading = GradingPool(workers=settings.workers, time_limit=settings.time_limit)
        return self._grading

    def encoded_with(self, stage: str, tokenizer: Tokenizer) -> bool:
        for reader in self._recipe.stages.values():
            if reader.stage.encodes is None:
                continue
            records, model = reader.stage.encodes
            if stage in self._read_through(reader.inputs.get(records, ())):
                known = [self._fingerprint(name) for name in reader.inputs.get(model, ())]
                if tokenizer.fingerprint in known or None in known:
                    return True
        return False

    def _read_through(self, names: Iterable[str | Path]) -> set[str]:
        """Return the stages that make these records, and those whose records they are made from."""
        todo, seen = [name for name in names if isinstance(name, str)], set[str]()
        while todo:
            if (name := todo.pop()) not in seen and self._recipe.stages[name].stage.makes == "records":
                seen.add(name)
                for inputs in self._recipe.stages[name].inputs.values():
                    todo += [below for below in inputs if isinstance(below, str)]
        return seen

    def _fingerprint(self, model: str | Path) -> str | None:
        """Return the fingerprint of a model's tokenizer: of one that is still to be made, of what it is made from. None
        where nobody knows it yet."""
        folder = self._run / model if isinstance(model, str) else model
        if isinstance(model, str) and read_manifest(folder) is None:
            entry = self._recipe.stages[model]
            below = [
                name
                for port, kind in entry.stage.takes.items()
                if kind in _MODELS
                for name in entry.inputs.get(port, ())
            ]
            return self._fingerprint(below[0]) if below else None
        try:
            return ChatTokenizer.load(folder).fingerprint
        except UserError:
            return None

    def vote(self, answers: Sequence[str]) -> Majority:
        return majority(answers)

    async def close(self) -> None:
        """Close everything that was opened, even where some of it fails to close."""
        async with contextlib.AsyncExitStack() as stack:
            if self._grading is not None:
                stack.callback(self._grading.close)
            if self._sandbox is not None:
                stack.push_async_callback(self._sandbox.close)
            stack.push_async_callback(self._end_stand_in)
            if self._teacher is not None:
                stack.push_async_callback(self._teacher[0].close)
            stack.push_async_callback(self.release_model)

    async def _end_stand_in(self) -> None:
        if self._teacher_process is not None and self._teacher_process.returncode is None:
            self._teacher_process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await self._teacher_process.wait()

    def teacher_tokenizer(self) -> Path:
        """Return the folder of the teacher's tokenizer. Raises UserError where the recipe names none."""
        if self._recipe.teacher.tokenizer is None:
            remedy = "give the folder of the model's tokenizer"
            raise self._recipe.error("teacher.tokenizer", "not set", remedy)
        return self._recipe.relative(self._recipe.teacher.tokenizer)

    async def _open_teacher(self) -> tuple[Engine, ChatTokenizer]:
        settings = self._recipe.teacher
        options = settings.template_options
        tokenizer = ChatTokenizer.load(self.teacher_tokenizer()).with_options(options, settings.renders)
        urls: list[str] | Path
        patience_s, address = settings.patience_s, self._servers.get("teacher")
        if address is not None:
            urls, patience_s = address.folder, max(patience_s, address.wait_s)
        elif settings.urls_file is not None:
            urls = settings.urls_file
        elif settings.is_stand_in:
            urls = [await self._start_stand_in()]
        else:
            urls = [settings.url] if settings.url is not None else list(settings.urls)
        engine = HTTPEngine(
            urls,
            settings.model if address is None else address.name,
            kind=settings.server,
            tokenizer=tokenizer,
            api=settings.api,
            reasoning_effort=settings.reasoning_effort,
            template_options={} if settings.renders else options,
            retry=RetryPolicy(attempts=settings.attempts, patience_s=patience_s),
            api_key_env=settings.api_key_env,
            timeout_s=settings.timeout_s,
        )
        try:
            await engine.probe()
        except BaseException:  # Ctrl-C while it is waited for, too
            await engine.close()
            raise
        return engine, tokenizer

    async def _start_stand_in(self) -> str:
        teacher = self._recipe.teacher
        command = teacher.program.command(teacher.stand_in, self.teacher_tokenizer())
        log = (self._run / "teacher.log").open("ab")
        with log:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=log, env=child_environment(OMP_NUM_THREADS="1")
            )
        self._teacher_process = process
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_STARTUP_SECONDS):
                line = await process.stdout.readline()
            return str(json.loads(line)["url"])
        except (TimeoutError, ValueError, KeyError) as error:
            raise OpenMathError(f"the stand-in teacher did not start; see {self._run / 'teacher.log'}") from error

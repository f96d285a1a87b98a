"""The recipe file: what it may say, checked before anything runs.

    name: tiny
    seed: 1
    teacher: {url: null, tokenizer: base, ...}      # a real server: url, model, tokenizer, api
    student: {slots: 64, ...}                       # how models made by stages generate
    stages:
      threads: {run: demo.threads, ...}             # name: kind of stage, inputs, settings
      extract: {run: problems.extract, from: threads, engine: teacher}

A stage's ``from`` names earlier stages, or files and folders (recognised by their ``/``, relative to the recipe file):
one name or a list for the one input that a stage needs (or has, where it needs none), ``port: names`` where there are
several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from nemo_openmath.demo import TeacherConfig
from nemo_openmath.engines.open import EngineConfig
from nemo_openmath.errors import UserError
from nemo_openmath.pipeline.bounds import AnyInt, NonNegativeFloat, PositiveFloat, PositiveInt
from nemo_openmath.pipeline.build import OVERRIDE, Builder, Origin, Value, nearest
from nemo_openmath.pipeline.config import Source
from nemo_openmath.pipeline.stage import Stage, stage_kinds
from nemo_openmath.recipe import rooms

assert rooms.ROOMS


@dataclass(frozen=True)
class Teacher:
    """The model that reads the forum, solves, judges and summarises. ``url: null`` starts the stand-in, a program
    that plays it in the demo's world; anything else is any OpenAI-compatible server. ``attempts``: of a request that
    fails; ``timeout_s``: of one attempt; ``patience_s``: for a server that is busy or away. Several servers of the same
    model: ``urls``, or ``urls_file``, one a line, read again when it changes; ``server``: their kind."""

    url: str | None = None
    urls: tuple[str, ...] = ()
    urls_file: Path | None = None
    server: Literal["auto", "vllm", "sglang", "trtllm", "openmath", "openai"] = "auto"
    model: str = "stand-in-teacher"
    tokenizer: str | None = None
    api: Literal["completions", "chat"] = "completions"
    api_key_env: str | None = None
    attempts: PositiveInt = 5
    timeout_s: PositiveFloat = 3600.0
    patience_s: NonNegativeFloat = 600.0
    stand_in: TeacherConfig = field(default_factory=TeacherConfig)

    def __post_init__(self) -> None:
        if sum((self.url is not None, bool(self.urls), self.urls_file is not None)) > 1:
            raise UserError("url, urls and urls_file exclude each other", remedy="name the servers once")

    @property
    def is_stand_in(self) -> bool:
        return self.url is None and not self.urls and self.urls_file is None


@dataclass(frozen=True)
class SandboxSettings:
    """``url``: of an ``openmath sandbox serve`` (http://, https://, unix:/path); null: a sandbox of the recipe's own,
    with ``workers``. ``token_env``: the environment variable with the service's token. ``unsafe``: run code even where
    a wall is missing; every result then says so."""

    url: str | None = None
    token_env: str | None = None
    workers: PositiveInt | None = None
    unsafe: bool = False

    def __post_init__(self) -> None:
        if self.url is not None and self.workers is not None:
            raise UserError("workers belong to the service", remedy="remove workers, or url")
        if self.url is None and self.token_env is not None:
            raise UserError("token_env without url", remedy="give the service's url, or remove token_env")


@dataclass(frozen=True)
class GradingSettings:
    workers: PositiveInt = 1
    time_limit: PositiveFloat = 2.0


@dataclass(frozen=True)
class StageEntry:
    """One stage of the recipe. ``inputs``: port -> names of stages or resolved paths, in the file's order."""

    name: str
    stage: Stage
    inputs: dict[str, tuple[str | Path, ...]]
    seed: int
    origin: Origin
    folder: Path  # of the recipe file: what its paths are relative to

    def files(self) -> list[Path]:
        """Files and folders that this stage reads and that no stage makes."""
        engines = [name for name in self.stage.engines() if "/" in name]
        named = [n for names in self.inputs.values() for n in names if isinstance(n, Path)]
        return [*named, *(self.folder / name for name in engines)]


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe. ``values``: every setting with its origin."""

    name: str
    seed: int
    path: Path
    teacher: Teacher
    student: EngineConfig
    sandbox: SandboxSettings
    grading: GradingSettings
    stages: dict[str, StageEntry]
    values: list[Value]

    def entry(self, name: str) -> StageEntry:
        """Raises UserError with the nearest name."""
        if name not in self.stages:
            raise UserError(f"no stage {name!r}", file=self.path, remedy=nearest(name, list(self.stages)))
        return self.stages[name]

    def check_files(self, names: Sequence[str]) -> None:
        """Raises UserError, with the line of its stage, for a file that is not there."""
        for entry in map(self.entry, names):
            for file in entry.files():
                if not file.exists():
                    raise UserError(
                        f"stages.{entry.name}: no such file or folder: {file}",
                        file=entry.origin.file,
                        row=entry.origin.line,
                        remedy="put it there, or change the path",
                    )

    def relative(self, path: str | Path) -> Path:
        """A path written in the recipe file."""
        return self.path.parent / path


@dataclass(frozen=True)
class _Head:
    name: str
    seed: AnyInt = 0
    teacher: Teacher = field(default_factory=Teacher)
    student: EngineConfig = field(default_factory=EngineConfig)
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    grading: GradingSettings = field(default_factory=GradingSettings)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe file. Raises UserError naming file, line, setting and remedy."""
    source = Source.read(path, overrides)
    data = {k: v for k, v in source.data.items() if not k.startswith("x-")}  # x-...: a place for YAML anchors
    builder = Builder(source.origin, Path(path).parent)
    stages = data.pop("stages", None)
    if not isinstance(stages, dict) or not stages:
        raise builder.error(("stages",), "a recipe needs stages", "write stages: {name: {run: kind, ...}}")
    known = [f.name for f in fields(_Head)] + ["stages"]
    for name in data:
        if name not in known:
            raise builder.unknown((name,), known)
    head = builder.build(_Head, data)
    entries: dict[str, StageEntry] = {}
    for name, body in stages.items():
        entries[name] = _entry(name, body, entries, builder, Path(path), head.seed)
    return Recipe(
        head.name,
        head.seed,
        Path(path),
        head.teacher,
        head.student,
        head.sandbox,
        head.grading,
        entries,
        builder.values,
    )


def _entry(name: str, body: Any, earlier: dict[str, StageEntry], builder: Builder, path: Path, seed: int) -> StageEntry:
    key = ("stages", name)
    if not isinstance(body, dict) or not isinstance(body.get("run"), str):
        if builder.origin(key) is OVERRIDE and earlier:  # a misspelt name comes after all those of the file
            raise builder.error(key, "no such stage", nearest(name, list(earlier)))
        raise builder.error(key, "a stage needs a kind", "write run: kind")
    body = dict(body)
    kind, written, own_seed = body.pop("run"), body.pop("from", {}), body.pop("seed", None)
    kinds = stage_kinds()
    if kind not in kinds:
        raise builder.choice((*key, "run"), kind, list(kinds))
    cls = kinds[kind]
    builder.convert(str, kind, (*key, "run"))
    config: Any = builder.build(cls.Config, body, key)
    inputs = _inputs(cls, written, key, earlier, builder, path)
    try:
        stage = cls(config)
    except UserError as error:
        raise builder.error(key, str(error)) from error
    for engine in stage.engines():
        if engine != "teacher":
            _check_name(engine, (*key, "engine"), earlier, builder, path)
            if engine in earlier and earlier[engine].stage.makes != "model":
                raise builder.error((*key, "engine"), f"stage {engine!r} makes no model")
    if own_seed is not None:
        builder.convert(int, own_seed, (*key, "seed"))
    return StageEntry(name, stage, inputs, seed if own_seed is None else own_seed, builder.origin(key), path.parent)


def _inputs(
    cls: type[Stage], written: Any, key: tuple[str, ...], earlier: dict[str, StageEntry], builder: Builder, path: Path
) -> dict[str, tuple[str | Path, ...]]:
    ports = {p.removesuffix("?"): p for p in cls.ports}
    if not isinstance(written, dict):
        required = [name for name, declared in ports.items() if name == declared] or list(ports)
        if len(required) != 1:
            raise builder.error(
                (*key, "from"), f"{cls.kind} has {len(ports)} inputs", f"name them: {', '.join(ports) or 'none'}"
            )
        written = {required[0]: written}
    out: dict[str, tuple[str | Path, ...]] = {}
    for port, names in written.items():
        at = (*key, "from", port)
        if port not in ports:
            raise builder.unknown(at, list(ports))
        listed = names if isinstance(names, list) else [names]
        if not listed or not all(isinstance(n, str) for n in listed):
            raise builder.error(at, "expected the name of a stage or a path")
        out[port] = tuple(_check_name(n, at, earlier, builder, path) for n in listed)
        builder.convert(Any, names, at)
    for port, declared in ports.items():
        if port not in out and not declared.endswith("?"):
            raise builder.error((*key, "from"), f"input {port!r} is missing ({cls.ports[declared]})")
    return out


def _check_name(
    name: str, key: tuple[str, ...], earlier: dict[str, StageEntry], builder: Builder, path: Path
) -> str | Path:
    if name in earlier:
        return name
    if "/" in name:
        return path.parent / name
    raise builder.error(key, f"no earlier stage is called {name!r}", f"{nearest(name, list(earlier))} (a path has a /)")

"""The recipe file: what it may say, checked before anything runs.

    name: tiny
    seed: 1
    teacher: {url: null, tokenizer: base, ...}      # a real server: url, model, tokenizer, api
    student: {slots: 64, ...}                       # how models made by stages generate
    stages:
      threads: {run: demo.threads, ...}             # name: kind of stage, inputs, settings
      extract: {run: problems.extract, from: threads, engine: teacher}

A stage's ``from`` names earlier stages, or files and folders (recognised by their ``/``, relative to the file that says
it, on the command line to the working directory): one name or a list for the one input that a stage needs (or has,
where it needs none), ``port: names`` where there are several. Every stage may have a ``seed`` of its own, and
``allow_empty: true`` where leaving nothing is no mistake. ``note: a sentence`` is shown with the results.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nemo_openmath.core.bounds import AnyInt, NonNegativeFloat, PositiveFloat, PositiveInt
from nemo_openmath.core.build import OVERRIDE, Builder, Key, Origin, Value, nearest
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import DamagedFile, UserError, one_error
from nemo_openmath.core.records import read_manifest
from nemo_openmath.core.stage import Stage, stage_kinds
from nemo_openmath.inference.open import EngineConfig
from nemo_openmath.recipe.registry import register_stages
from nemo_openmath.recipe.teacher import Teacher, settings_types


@dataclass(frozen=True)
class SandboxSettings:
    """Where the code of solutions runs."""

    url: str | None = None
    """Address of an ``openmath sandbox serve``: ``http://...``, ``https://...`` or ``unix:/path``. ``null`` opens a
    sandbox of the recipe's own."""
    token_env: str | None = None
    """The environment variable that holds the service's token."""
    patience_s: NonNegativeFloat = 600.0
    """How long a service that is busy or away is waited for, in seconds."""
    workers: PositiveInt | None = None
    """How many programs the recipe's own sandbox runs at a time. ``null`` is one for each processor."""
    unsafe: bool = False
    """Run code even where a protection is missing on this system. Every result then says so."""

    def __post_init__(self) -> None:
        if self.url is not None and self.workers is not None:
            raise UserError("workers belong to the service", remedy="remove workers, or url")
        if self.url is None and self.token_env is not None:
            raise UserError("token_env without url", remedy="give the service's url, or remove token_env")


@dataclass(frozen=True)
class GradingSettings:
    """How answers are compared."""

    workers: PositiveInt = 1
    """Processes that compare answers."""
    time_limit: PositiveFloat = 2.0
    """Time limit of one comparison, in seconds. Beyond it the verdict is ``timeout``."""


@dataclass(frozen=True)
class StageEntry:
    """One stage of the recipe. ``inputs``: port -> names of stages or resolved paths, in the file's order."""

    name: str
    stage: Stage
    inputs: dict[str, tuple[str | Path, ...]]
    seed: int
    origin: Origin
    allow_empty: bool = False

    def error(self, problem: str, remedy: str = "") -> UserError:
        """An error that names the stage and its line."""
        return UserError(f"stages.{self.name}: {problem}", file=self.origin.file, row=self.origin.line, remedy=remedy)


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
    paths: dict[str, Path] = field(default_factory=dict)  # of engines and tokenizers, as written -> where it is
    extends: tuple[Path, ...] = ()
    note: str = ""  # a sentence for whoever reads the results
    verb: str = "recipe"  # whose file it is: `openmath recipe`, or `openmath generate`

    def entry(self, name: str) -> StageEntry:
        """Raises UserError with the nearest name."""
        if name not in self.stages:
            raise UserError(f"no stage {name!r}", file=self.path, remedy=nearest(name, list(self.stages)))
        return self.stages[name]

    def read_by(self, entry: StageEntry) -> list[str]:
        """Return the stages that a stage reads, its engines among them."""
        named = [n for names in entry.inputs.values() for n in names if isinstance(n, str)]
        return [*named, *(name for name in entry.stage.engines() if name in self.stages)]

    def files(self, entry: StageEntry) -> list[Path]:
        """Files and folders that a stage reads and that no stage makes."""
        engines = [name for name in entry.stage.engines() if name not in self.stages and name != "teacher"]
        named = [n for names in entry.inputs.values() for n in names if isinstance(n, Path)]
        return [*named, *map(self.relative, engines)]

    def missing_files(self, names: Sequence[str]) -> list[UserError]:
        """An error, with the line of its stage, for every file that is not there."""
        found: list[UserError] = []
        for entry in map(self.entry, names):
            found += [
                entry.error(f"no such file or folder: {shown(file)}", "put it there, or change the path")
                for file in dict.fromkeys(self.files(entry))
                if not file.exists()
            ]
        return found

    def check_files(self, names: Sequence[str]) -> None:
        """Raises UserError that lists all the files that these stages read and that are not there."""
        if missing := self.missing_files(names):
            raise one_error(missing, f"{self.path}: nothing was run")

    def relative(self, path: str | Path) -> Path:
        """Where a path that the recipe writes is."""
        return self.paths.get(str(path), self.path.parent / path)


def shown(path: Path) -> str:
    """A path as it is found from here, and as it is found from anywhere where that differs."""
    return str(path) if path.is_absolute() else f"{path} ({path.resolve()})"


@dataclass(frozen=True)
class RecipeSettings:
    """What a recipe file says beside its stages."""

    name: str
    """What the run is called in reports."""
    note: str = ""
    """A sentence for whoever reads the results."""
    seed: AnyInt = 0
    """The seed of every stage that has none of its own."""
    teacher: Teacher = field(default_factory=Teacher)
    """The model that reads the forum, solves, judges and summarises."""
    student: EngineConfig = field(default_factory=EngineConfig)
    """How models that stages make, and model folders, generate."""
    sandbox: SandboxSettings = field(default_factory=SandboxSettings)
    """Where the code of solutions runs."""
    grading: GradingSettings = field(default_factory=GradingSettings)
    """How answers are compared."""


def load_recipe(path: str | Path, overrides: Sequence[str] = (), here: Path = Path()) -> Recipe:
    """Read and check a recipe file. ``here``: what paths of ``overrides`` are relative to. Raises UserError naming
    file, line, setting and remedy; where several stages are wrong, it lists them."""
    register_stages()
    source = Source.read(path, overrides)
    data = {k: v for k, v in source.data.items() if not k.startswith("x-")}  # x-...: a place for YAML anchors
    builder = Builder(source.origin, Path(path).parent, here, settings_types())
    stages = data.pop("stages", None)
    if not isinstance(stages, dict) or not stages:
        raise builder.error(("stages",), "a recipe needs stages", "write stages: {name: {run: kind, ...}}")
    known = [f.name for f in fields(RecipeSettings)] + ["stages"]
    for name in data:
        if name not in known:
            raise builder.unknown((name,), known)
    head = builder.build(RecipeSettings, data)
    made = _Stages(builder, stages, head.seed)
    if head.teacher.tokenizer is not None:
        made.locate(head.teacher.tokenizer, ("teacher", "tokenizer"))
    errors: list[UserError] = []
    for name, body in stages.items():
        try:
            made.add(name, body)
        except UserError as error:
            errors.append(error)
    if errors:
        raise one_error(errors, str(path))
    return Recipe(
        head.name,
        head.seed,
        Path(path),
        head.teacher,
        head.student,
        head.sandbox,
        head.grading,
        made.entries,
        builder.values,
        made.paths,
        source.files[1:],
        head.note,
    )


class _Stages:
    """The stages of a recipe file, read in order. ``entries``: those that are right; ``paths``: see Recipe."""

    def __init__(self, builder: Builder, written: dict[str, Any], seed: int):
        self.builder, self.written, self.seed = builder, written, seed
        self.entries: dict[str, StageEntry] = {}
        self.paths: dict[str, Path] = {}
        self._wrong: set[str] = set()

    def add(self, name: str, body: Any) -> None:
        """Raises UserError where a stage is wrong; those that read it are then not said to be."""
        self._wrong.add(name)
        self.entries[name] = self._entry(name, body)
        self._wrong.remove(name)

    def locate(self, path: str, key: Key) -> Path:
        """Where a path that was written at ``key`` is."""
        found = self.builder.base(key) / path
        if self.paths.setdefault(path, found).resolve() != found.resolve():
            other = self.paths[path].resolve()
            raise self.builder.error(key, f"{path} is {found.resolve()} here and {other} elsewhere", "write it in full")
        return found

    def _entry(self, name: str, body: Any) -> StageEntry:
        key, builder = ("stages", name), self.builder
        if not isinstance(body, dict) or not isinstance(body.get("run"), str):
            if builder.origin(key) is OVERRIDE and self.entries:  # a misspelt name comes after all those of the file
                raise builder.error(key, "no such stage", nearest(name, list(self.entries)))
            raise builder.error(key, "a stage needs a kind", "write run: kind")
        if not _NAME.fullmatch(name):
            raise builder.error(key, "a stage's name is the name of a folder", "use letters, digits, _ and -")
        body = dict(body)
        kind, written, own_seed = body.pop("run"), body.pop("from", {}), body.pop("seed", None)
        allow_empty = body.pop("allow_empty", False)
        kinds = stage_kinds()
        if kind not in kinds:
            raise builder.choice((*key, "run"), kind, list(kinds))
        cls = kinds[kind]
        builder.convert(str, kind, (*key, "run"))
        config: Any = builder.build(cls.Config, body, key)
        inputs = self._inputs(cls, written, key)
        try:
            stage = cls(config)
        except UserError as error:
            raise builder.error(key, str(error)) from error
        for engine in stage.engines():
            at = (*key, "engine")
            if engine != "teacher" and isinstance(self._check_name(engine, at), str):
                if engine not in self._wrong and self.entries[engine].stage.makes != "model":
                    raise builder.error(at, f"stage {engine!r} makes no model")
            elif engine != "teacher":
                self.locate(engine, at)
        if own_seed is not None:
            builder.convert(int, own_seed, (*key, "seed"))
        builder.convert(bool, allow_empty, (*key, "allow_empty"))
        return StageEntry(
            name, stage, inputs, self.seed if own_seed is None else own_seed, builder.origin(key), allow_empty
        )

    def _inputs(self, cls: type[Stage], written: Any, key: Key) -> dict[str, tuple[str | Path, ...]]:
        builder, ports = self.builder, {p.removesuffix("?"): p for p in cls.ports}
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
            out[port] = tuple(self._check_name(n, at) for n in listed)
            for name in out[port]:
                self._check_type(cls, port, name, at)
            builder.convert(Any, names, at)
        for port, declared in ports.items():
            if port not in out and not declared.endswith("?"):
                raise builder.error((*key, "from"), f"input {port!r} is missing ({cls.ports[declared]})")
        return out

    def _check_name(self, name: str, key: Key) -> str | Path:
        if name in self.entries or name in self._wrong - {key[1]}:
            return name
        if "/" in name:
            return self.builder.base(key) / name
        if name in self.written:
            raise self.builder.error(key, *self._order(name, key[1]))
        known = f"{nearest(name, list(self.entries))} (a path has a /)" if self.entries else "write a path with a /"
        raise self.builder.error(key, f"no earlier stage is called {name!r}", known)

    def _order(self, later: str, name: str) -> tuple[str, str]:
        """(problem, remedy) where a stage reads itself or one that stands below it."""
        chain = [name, name] if later == name else self._chain(later, name)
        if chain is not None:
            return f"the stages read each other in a circle: {' reads '.join(chain)}", "let one of them read another"
        return f"stage {later!r} stands below this one", f"write {later!r} above {name!r}: stages read earlier ones"

    def _chain(self, at: str, goal: str) -> list[str] | None:
        """``goal``, ``at``, ... back to ``goal`` along what reads what; None where no way leads there."""
        paths, seen = [[goal, at]], {at}
        while paths:
            path = paths.pop(0)
            for name in self._read_by(path[-1]):
                if name == goal:
                    return [*path, goal]
                if name not in seen:
                    seen.add(name)
                    paths.append([*path, name])
        return None

    def _read_by(self, name: str) -> list[str]:
        """Stages that a stage, as it is written, reads."""
        body = self.written.get(name)
        written = [body.get("from"), body.get("engine")] if isinstance(body, dict) else []
        flat = [v for w in written for v in (w.values() if isinstance(w, dict) else [w])]
        names = [n for v in flat for n in (v if isinstance(v, list) else [v])]
        return [n for n in names if isinstance(n, str) and n in self.written]

    def _check_type(self, cls: type[Stage], port: str, name: str | Path, key: Key) -> None:
        """Refuse a stage that makes something else than the input takes, this recipe's or another's."""
        made = self.entries[name].stage if isinstance(name, str) and name in self.entries else None
        kind = type(made) if made is not None else foreign_stage(name) if isinstance(name, Path) else None
        if kind is None or fits(kind, cls, port):
            return
        right = [n for n, e in self.entries.items() if fits(type(e.stage), cls, port)]
        raise self.builder.error(
            key,
            f"{cls.kind} takes {noun(cls.takes[port])} here, and {str(name)!r} ({kind.kind}) makes "
            f"{noun(kind.product())}",
            f"name a stage that makes them{': ' + ', '.join(right) if right else ''}",
        )


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def foreign_stage(folder: Path) -> type[Stage] | None:
    """The kind of stage that made a folder; None where no stage of ours did."""
    try:
        manifest = read_manifest(folder)
    except (OSError, DamagedFile):
        return None
    return stage_kinds().get(manifest.stage) if manifest is not None else None


def fits(made: type[Stage], reader: type[Stage], port: str) -> bool:
    """Whether what a stage makes may be read at an input of another."""
    wanted = reader.takes.get(port, made.product())
    return made.makes == "records" if wanted == "records" else made.product() == wanted


def noun(product: str) -> str:
    """``Generation`` -> ``Generation records``; artifacts (model, packs) are called by their name."""
    return (
        f"{product} records" if product[0].isupper() else f"a folder of {product}" if product != "records" else product
    )

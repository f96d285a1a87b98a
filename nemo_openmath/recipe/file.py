"""The recipe file: what it may say, checked before anything runs.

    name: tiny
    seed: 1
    teacher: {url: null, tokenizer: base, ...}      # a real server: url, model, tokenizer, api
    student: {slots: 64, ...}                       # how models made by stages generate
    partitions: 64                                  # parts of the work that jobs of an array share
    failed_items: 0.001                             # share of a stage's items that may fail
    stages:
      threads: {run: demo.threads, ...}             # name: kind of stage, inputs, settings
      extract: {run: problems.extract, from: threads, engine: teacher}
    iterations: {most: 3, ...}                      # stages that are repeated, each time with a newer model

Stages run in the order in which they are written. A stage that stands below one that reads it, as where a file that
extends another adds it, runs right before that one.

A stage's ``from`` names other stages, or files and folders (recognised by their ``/``, relative to the file that says
it, on the command line to the working directory): one name or a list for the one input that a stage needs (or has,
where it needs none), ``port: names`` where there are several. Every stage may have a ``seed`` and ``failed_items`` of
its own, and ``allow_empty: true`` where leaving nothing is no mistake. ``note: a sentence`` is shown with the results.

``iterations`` is a loop (iterations.py): its stages become ``NAME-1``, ``NAME-2``, ..., one set an iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from nemo_openmath.core.bounds import AnyInt, NonNegativeFloat, PositiveFloat, PositiveInt, ShareBelowOne
from nemo_openmath.core.build import Builder, Key, Origin, Value, nearest
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import UserError, one_error
from nemo_openmath.core.records.lineage import digest_file
from nemo_openmath.inference.open import EngineConfig
from nemo_openmath.recipe.iteration_checks import check_metric
from nemo_openmath.recipe.iteration_settings import SECTION, Loop
from nemo_openmath.recipe.iterations import unroll
from nemo_openmath.recipe.registry import register_stages
from nemo_openmath.recipe.stage_entries import StageEntries, StageEntry
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
class Recipe:
    """A recipe file, read, resolved and checked."""

    name: str
    seed: int
    """The seed of every stage that has none of its own."""
    path: Path
    """The recipe file. Of a snapshot, the file that it was made of."""
    teacher: Teacher
    student: EngineConfig
    sandbox: SandboxSettings
    grading: GradingSettings
    partitions: int
    """Into how many parts the records of a stage are divided, at least."""
    hang_seconds: float | None
    """After so many seconds in which nothing happens a stage of units ends the run."""
    stages: dict[str, StageEntry]
    """Name -> stage, in the order in which they run."""
    values: list[Value]
    """Every setting with its origin."""
    origin: Callable[[Key], Origin]
    """Where the value of a setting was written."""
    paths: dict[str, Path] = field(default_factory=dict)
    """Paths of engines and tokenizers as they are written -> where they are."""
    extends: tuple[Path, ...] = ()
    """The files that this one extends."""
    note: str = ""
    """A sentence for whoever reads the results."""
    verb: str = "recipe"
    """The command whose file it is: ``recipe`` or ``generate``."""
    source: Source | None = None
    """What was read: of a snapshot, the file of the snapshot."""
    loop: Loop | None = None
    """The iterations, whose stages are among ``stages``."""

    @property
    def snapshot(self) -> Path | None:
        """The file of the snapshot that was read; None where it was the recipe itself."""
        return self.source.path if self.source is not None and self.source.snapshot is not None else None

    def digest(self) -> str:
        """Return the digest of the recipe file, of a snapshot as it was when that was made."""
        written = self.source.snapshot if self.source is not None else None
        return digest_file(self.path) if written is None else written.digest

    def entry(self, name: str) -> StageEntry:
        """Return a stage. Raises UserError with the nearest name where there is none of this name."""
        if name not in self.stages:
            raise UserError(f"no stage {name!r}", file=self.path, remedy=nearest(name, list(self.stages)))
        return self.stages[name]

    def error(self, setting: str, problem: str, remedy: str = "") -> UserError:
        """Return an error that names a setting (``teacher.url``) and where its value comes from: a line of the file, or
        of one that it extends, or an override."""
        return self.origin(tuple(setting.split("."))).error(setting, problem, remedy)

    def written(self, entry: StageEntry) -> str:
        """Return the name under which the file says a stage: that of a loop has one for all iterations."""
        return entry.name if self.loop is None else self.loop.body.get(entry.name, entry.name)

    def read_by(self, entry: StageEntry) -> list[str]:
        """Return the stages that a stage reads, its engines among them."""
        named = [n for names in entry.inputs.values() for n in names if isinstance(n, str)]
        return [*named, *(name for name in entry.stage.engines() if name in self.stages)]

    def runs_after(self, entry: StageEntry) -> list[str]:
        """Return the stages that must have been made before a stage: those that it reads, and of a stage of a loop the
        decision that an iteration more is made."""
        return [*self.read_by(entry), *entry.gates[-1:]]

    def files(self, entry: StageEntry) -> dict[Path, str]:
        """Return the files and folders that a stage reads and that no stage makes, each with the setting that names
        it."""
        engines = [name for name in entry.stage.engines() if name not in self.stages and name != "teacher"]
        named = {n: f"from.{port}" for port, names in entry.inputs.items() for n in names if isinstance(n, Path)}
        return named | {self.relative(name): entry.engine_setting(name) for name in engines}

    def missing_files(self, names: Sequence[str]) -> list[UserError]:
        """Return an error for every file that is not there, with the line of the first stage that names it."""
        missing: dict[Path, list[tuple[StageEntry, str]]] = {}
        for entry in map(self.entry, names):
            for file, setting in self.files(entry).items():
                if not file.exists():
                    missing.setdefault(file, []).append((entry, setting))
        errors = []
        for file, readers in missing.items():
            entry, setting = readers[0]
            others = ", ".join(dict.fromkeys(e.name for e, _ in readers[1:] if e is not entry))
            problem = f"no such file or folder: {shown(file)}" + (f" (also for {others})" if others else "")
            errors.append(entry.error(problem, "put it there, or change the path", setting))
        return errors

    def check_files(self, names: Sequence[str]) -> None:
        """Raise UserError that lists all the files that these stages read and that are not there."""
        if missing := self.missing_files(names):
            raise one_error(missing, f"{self.path}: nothing was run")

    def relative(self, path: str | Path) -> Path:
        """Return where a path is that the recipe writes."""
        return self.paths.get(str(path), self.path.parent / path)


def shown(path: Path) -> str:
    """Return a path as it is found from here and, where that differs, as it is found from anywhere."""
    return str(path) if path.is_absolute() else f"{path} ({path.resolve()})"


@dataclass(frozen=True)
class RecipeSettings:
    """What a recipe file says beside its stages."""

    name: str
    """What the run is called in reports."""
    note: str = ""
    """A sentence for whoever reads the results. A recipe that extends this one does not have it."""
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
    partitions: PositiveInt = 1
    """Into how many parts the records of each stage are divided, at least. A part is worked on as a whole, so memory is
    that of one part, and an array of up to so many jobs reads each record once. It changes no record, but their
    order: a training sees its rows in another one. A million records want about 16."""
    hang_seconds: PositiveFloat | None = None
    """Seconds without any unit, token, answer or block of code that ended, after which a stage of units counts as hung:
    it writes the stacks of its threads and tasks into ``stacks`` of its folder, and ends with exit code 76. It is never
    less than the time limit of a request (``timeout_s``). ``null``: an hour, or twice that limit. A training has
    ``training.hang_seconds``."""
    failed_items: ShareBelowOne = 0.0
    """The share of a stage's items that may fail after all attempts, such as 0.001. The stage then finishes without
    them, and counts them among its drops. ``0`` allows none: one that fails ends the run, to be tried again."""


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), here: Path = Path(), options: Mapping[Key, str] | None = None
) -> Recipe:
    """Read and check a recipe file.

    ``overrides`` are ``a.b=value``, and paths in them are relative to ``here``. ``options``: what settings are called
    on the command line that the file was written from, for errors; their paths are absolute. The kinds of stages are
    those of the product (registry.py) and what else was registered before.

    Raises UserError naming file, line, setting and remedy; where several stages are wrong, it lists them.
    """
    register_stages()
    source = Source.read(path, overrides)
    for key, option in (options or {}).items():
        source.rename(key, Origin(option))
    path = source.path if source.snapshot is None else source.snapshot.of
    data = {k: v for k, v in source.data.items() if not k.startswith("x-")}  # x-...: a place for YAML anchors
    builder = Builder(source.origin, Path(path).parent, here, settings_types(), source.taken_out)
    repeated = data.pop(SECTION, None)
    stages = data.pop("stages", {} if repeated else None)
    if not isinstance(stages, dict) or not (stages or repeated):
        raise builder.error(("stages",), "a recipe needs stages", "write stages: {name: {run: kind, ...}}")
    known = [f.name for f in fields(RecipeSettings)] + ["stages", SECTION]
    for name in data:
        if name not in known:
            raise builder.unknown((name,), known)
    extends = source.files[1:] if source.snapshot is None else source.snapshot.extends
    if Path(source.origin(("note",)).file).resolve() in (file.resolve() for file in extends):
        data.pop("note", None)  # what is said of that file's results is not said of these
    head = builder.build(RecipeSettings, data)
    loop = None if repeated is None else unroll(builder, source, repeated, stages, head.seed)
    if loop is not None:
        stages, builder.origin, builder.written = loop.stages, loop.origin, loop.written
        builder.taken_out = loop.taken_out
    entries = StageEntries(builder, stages, head.seed, head.failed_items, loop.gates if loop is not None else None)
    if head.teacher.tokenizer is not None:
        entries.locate(head.teacher.tokenizer, ("teacher", "tokenizer"))
    errors: dict[str, UserError] = {}  # what is wrong with a stage of a loop is said once
    for name in entries.order():
        try:
            entries.add(name, stages[name])
        except UserError as error:
            errors.setdefault(loop.body.get(name, name) if loop is not None else name, error)
    if loop is not None and not errors:
        check_metric(loop, entries.entries, builder)
    if errors:
        heading = "the command line" if options else str(path)
        raise one_error(list({str(error): error for error in errors.values()}.values()), heading)
    return Recipe(
        name=head.name,
        seed=head.seed,
        path=Path(path),
        teacher=head.teacher,
        student=head.student,
        sandbox=head.sandbox,
        grading=head.grading,
        partitions=head.partitions,
        hang_seconds=head.hang_seconds,
        stages=entries.entries,
        values=builder.values,
        origin=builder.origin,
        paths=entries.paths,
        extends=extends,
        note=head.note,
        source=source,
        loop=loop,
    )


def is_recipe(path: Path) -> bool:
    """Return whether a file is a recipe: it has stages. A file that cannot be read is none."""
    if not path.is_file():
        return False
    try:
        return isinstance(Source.read(path).data.get("stages"), dict)
    except UserError:
        return False

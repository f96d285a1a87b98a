"""The stages of a recipe file: each entry read and checked, its inputs found and held against what it takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.core.bounds import ShareBelowOne
from nemo_openmath.core.build import OVERRIDE, Builder, Key, Origin, nearest
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.records import read_manifest
from nemo_openmath.core.stage import Stage, UnitStage, stage_kinds


@dataclass(frozen=True)
class StageEntry:
    """One stage of a recipe, checked."""

    name: str
    stage: Stage
    inputs: dict[str, tuple[str | Path, ...]]
    """Port -> names of stages or resolved paths, in the file's order."""
    seed: int
    origin: Origin
    """The file and line that name the stage."""
    allow_empty: bool = False
    failed_items: float = 0.0
    """The share of its units that may fail."""
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """Where settings of the stage were written, ``from.PORT`` among them: a line of a file, or an override."""
    overridden: tuple[str, ...] = ()
    """The settings that overrides gave."""
    gates: tuple[str, ...] = ()
    """The decisions of a loop that are made before this stage: where one of them ends the loop, the stage is not
    needed."""

    def error(self, problem: str, remedy: str = "", setting: str = "") -> UserError:
        """Return an error that names the stage, its line and what overrides changed in it; or a setting of the stage
        and where that was written."""
        origin = self.origins.get(setting, self.origin)
        name = f"stages.{self.name}" + (f".{setting}" if setting else "")
        if not setting and self.overridden and origin is not OVERRIDE:
            name += f" (with override {', '.join(self.overridden)})"
        return origin.error(name, problem, remedy)

    def engine_setting(self, engine: str) -> str:
        """Return the setting that names an engine."""
        return engine_setting({name: getattr(self.stage.config, name, None) for name in ENGINES}, engine)


class StageEntries:
    """The stages of a recipe file: ``entries`` are those that are right, ``paths`` those of Recipe.

    Stages are read in :meth:`order`, so that what a stage reads is known before it.
    """

    def __init__(
        self,
        builder: Builder,
        written: dict[str, Any],
        seed: int,
        failed_items: float = 0.0,
        gates: Mapping[str, tuple[str, ...]] | None = None,
    ):
        self.builder, self.written, self.seed = builder, written, seed
        self.failed_items, self._own_gates = failed_items, gates or {}
        self.entries: dict[str, StageEntry] = {}
        self.paths: dict[str, Path] = {}
        self._wrong: set[str] = set()

    def order(self) -> list[str]:
        """Return the names of the stages in the order in which they run: as written, and what stands below a stage that
        reads it is moved to right before that stage."""
        placed: dict[str, None] = {}
        for name in self.written:
            path = [name]  # each reads the next
            while path:
                below = (n for n in self._read_by(path[-1]) if n not in placed and n not in path)
                if (read := next(below, None)) is not None:
                    path.append(read)
                else:
                    placed[path.pop()] = None
        return list(placed)

    def add(self, name: str, body: Any) -> None:
        """Read one entry. Raises UserError where it is wrong; the stages that read it are not called wrong for that."""
        self._wrong.add(name)
        self.entries[name] = self._entry(name, body)
        self._wrong.remove(name)

    def locate(self, path: str, key: Key) -> Path:
        """Return where a path is that was written at ``key``. Raises UserError where another file of the recipe means
        another place by the same words."""
        here = self.builder.base(key) / path
        if self.paths.setdefault(path, here).resolve() != here.resolve():
            elsewhere = self.paths[path].resolve()
            problem = f"{path} is {here.resolve()} here and {elsewhere} elsewhere"
            raise self.builder.error(key, problem, "write it in full")
        return here

    def _entry(self, name: str, body: Any) -> StageEntry:
        key, builder = ("stages", name), self.builder
        self._check_body(name, body, key)
        body = dict(body)
        kind, written, own_seed = body.pop("run"), body.pop("from", {}), body.pop("seed", None)
        allow_empty, failed_items = body.pop("allow_empty", False), body.pop("failed_items", None)
        cls = self._class(kind, key)
        config: Any = builder.build(cls.Config, body, key)
        inputs = self._inputs(cls, written, key)
        try:
            stage = cls(config)
        except UserError as error:
            raise builder.error(key, str(error)) from error
        self._check_engines(stage, body, key)
        if own_seed is not None:
            builder.convert(int, own_seed, (*key, "seed"))
        builder.convert(bool, allow_empty, (*key, "allow_empty"))
        if failed_items is not None:
            at = (*key, "failed_items")
            failed_items = builder.convert(ShareBelowOne, failed_items, at)
            if not issubclass(cls, UnitStage):
                raise builder.error(at, f"{cls.kind} has no units that fail alone", "leave it out")
        seed = self.seed if own_seed is None else own_seed
        read = [*(n for names in inputs.values() for n in names), *stage.engines()]
        settings = [*body, "from", *(f"from.{port}" for port in inputs)]
        origins = {setting: builder.origin((*key, *setting.split("."))) for setting in settings}
        return StageEntry(
            name=name,
            stage=stage,
            inputs=inputs,
            seed=seed,
            origin=builder.origin(key),
            allow_empty=allow_empty,
            failed_items=self.failed_items if failed_items is None else failed_items,
            origins=origins,
            overridden=builder.overridden(key),
            gates=() if cls.gathers else self._gates(name, read),
        )

    def _gates(self, name: str, read: Sequence[str | Path]) -> tuple[str, ...]:
        """The decisions before a stage: its own, of a stage of a loop, and those before what it reads."""
        above = [gate for n in read if isinstance(n, str) and n in self.entries for gate in self.entries[n].gates]
        return tuple(dict.fromkeys([*self._own_gates.get(name, ()), *above]))

    def _check_body(self, name: str, body: Any, key: Key) -> None:
        """Refuse an entry that is none, and a name that cannot be that of a folder."""
        builder = self.builder
        if not isinstance(body, dict) or not isinstance(body.get("run"), str):
            if builder.origin(key) is OVERRIDE and self.entries:  # a misspelt name comes after all those of the file
                raise builder.error(key, "no such stage", nearest(name, list(self.entries)))
            raise builder.error(key, "a stage needs a kind", "write run: kind")
        if not _NAME.fullmatch(name):
            raise builder.error(
                key, "a stage's name is the name of a folder", "use letters, digits, _ and -; not sbatch"
            )

    def _class(self, kind: str, key: Key) -> type[Stage]:
        kinds = stage_kinds()
        if kind not in kinds:
            raise self.builder.choice((*key, "run"), kind, list(kinds))
        self.builder.convert(str, kind, (*key, "run"))
        return kinds[kind]

    def _check_engines(self, stage: Stage, body: Mapping[str, Any], stage_key: Key) -> None:
        """Refuse an engine that is a stage which makes no model; find those that are folders."""
        for engine in stage.engines():
            if engine == "teacher":
                continue
            key = (*stage_key, engine_setting(body, engine))
            if isinstance(self._check_name(engine, key), Path):
                self.locate(engine, key)
            elif engine not in self._wrong and self.entries[engine].stage.makes != "model":
                raise self.builder.error(key, f"stage {engine!r} makes no model")

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
                problem = f"input {port!r} is missing ({cls.ports[declared]})"
                raise builder.error((*key, "from"), problem, self._how_to_wire(cls, port, bool(out)))
        return out

    def _how_to_wire(self, cls: type[Stage], port: str, others: bool) -> str:
        """What to write for an input that is missing: stages that make what it takes, where there are some. ``others``:
        whether another input is written."""
        makers = [name for name, entry in self.entries.items() if fits(type(entry.stage), cls, port)]
        if port not in cls.takes or not makers:
            source = "a path with a /" if port not in cls.takes else f"a stage that makes {noun(cls.takes[port])}"
            return f"write from: {{{port}: ...}} with the name of {source}"
        wire = f"add {port}: {makers[-1]} to its from" if others else f"write from: {{{port}: {makers[-1]}}}"
        return wire + (f", or another of {', '.join(makers)}" if makers[1:] else "")

    def _check_name(self, name: str, key: Key) -> str | Path:
        if name in self.entries or name in self._wrong - {key[1]}:
            return name
        if "/" in name:
            return self.builder.base(key) / name
        if name in self.written:
            if (circle := self._chain(name, key[1])) is None:  # an engine that a setting of its own names
                raise self.builder.error(key, f"stage {name!r} stands below this one", f"write {name!r} above it")
            problem = f"the stages read each other in a circle: {' reads '.join(circle)}"
            raise self.builder.error(key, problem, "let one of them read another")
        others = [other for other in self.written if other != key[1]]
        known = f"{nearest(name, others)} (a path has a /)" if others else "write a path with a /"
        raise self.builder.error(key, f"no stage is called {name!r}", known)

    def _chain(self, at: str, goal: str) -> list[str] | None:
        """``goal``, ``at``, ... back to ``goal`` along what reads what; None where no way leads there."""
        if at == goal:
            return [goal, goal]
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
        """The stages that a stage reads, as it is written: its inputs, and the models that answer it."""
        body = self.written.get(name)
        if not isinstance(body, dict):
            return []
        inputs = body.get("from")
        ports = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
        engines = [name for key in ENGINES for name in _listed(body.get(key)) if name != "teacher"]
        names = [*(name for names in ports for name in _listed(names)), *engines, *self._own_gates.get(name, ())]
        return [name for name in names if isinstance(name, str) and name in self.written]

    def _check_type(self, cls: type[Stage], port: str, name: str | Path, key: Key) -> None:
        """Refuse a stage that makes something else than the input takes, this recipe's or another's."""
        if isinstance(name, Path):
            kind = foreign_stage(name)
        else:
            kind = type(self.entries[name].stage) if name in self.entries else None
        if kind is None or fits(kind, cls, port):
            return
        right = [n for n, e in self.entries.items() if fits(type(e.stage), cls, port)]
        raise self.builder.error(
            key,
            f"{cls.kind} takes {noun(cls.takes[port])} here, and {str(name)!r} ({kind.kind}) makes "
            f"{noun(kind.product())}",
            f"name a stage that makes them{': ' + ', '.join(right) if right else ''}",
        )


ENGINES = ("engine", "more_engines")
"""The settings that name models: what :meth:`Stage.engines` returns comes from them."""
_NAME = re.compile(r"(?!sbatch$)[A-Za-z0-9_][A-Za-z0-9_-]*")  # `openmath launch` writes to sbatch/


def foreign_stage(folder: Path) -> type[Stage] | None:
    """Return the kind of stage that made a folder; None where no stage did."""
    try:
        manifest = read_manifest(folder)
    except (OSError, DamagedFile):
        return None
    return stage_kinds().get(manifest.stage) if manifest is not None else None


def engine_setting(settings: Mapping[str, Any], engine: str) -> str:
    """Return the setting, of those that name models, whose value names ``engine``."""
    return next((name for name in ENGINES if engine in _listed(settings.get(name))), ENGINES[0])


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def fits(made: type[Stage], reader: type[Stage], port: str) -> bool:
    """Return whether what a stage makes may be read at an input of another."""
    wanted = reader.takes.get(port, made.product())
    return made.makes == "records" if wanted == "records" else made.product() == wanted


def noun(product: str) -> str:
    """Return a product in words: ``Generation`` is "Generation records", ``packs`` is "a folder of packs"."""
    if product == "records":
        return product
    return f"{product} records" if product[0].isupper() else f"a folder of {product}"

"""What every stage declares, does, and is known by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from nemo_openmath.core.records import Record, content_id
from nemo_openmath.core.records.lineage import digest_file, digest_tree
from nemo_openmath.core.records.store import folder_sums
from nemo_openmath.core.stage.context import StageContext

C = TypeVar("C")

RUNTIME = {"runtime": True}
"""Metadata of a setting that says how fast and not what: ``field(metadata=RUNTIME)``. Such settings are left out of the
stage's fingerprint."""

ADDED = {"added": True}
"""Metadata of a setting that came later than its stage: ``field(metadata=ADDED)``. It is left out of the fingerprint
where it has its default, so what was made before it existed stays as it is asked for."""


class Stage(ABC, Generic[C]):
    """One arrow of the data flow. A recipe names a subclass by its ``kind`` and fills its ``Config``."""

    kind: ClassVar[str]
    """The name in recipes, once registered (kinds.py)."""
    version: ClassVar[int] = 1
    """Raise it when the same configuration would make other content."""
    Config: ClassVar[type]
    """The dataclass of the stage's settings."""
    ports: ClassVar[dict[str, str]] = {}
    """Input name -> what it holds, in words. An input whose name ends in ``?`` may be left out."""
    takes: ClassVar[dict[str, str]] = {}
    """Input name (without ``?``) -> the :meth:`product` of the stages that it may be wired to, or ``records`` for any
    stage that makes records. Inputs that are not listed take files of others."""
    record: ClassVar[type[Record] | None] = None
    """The type of the records, where ``makes`` is ``records``."""
    incremental: ClassVar[tuple[str, ...]] = ()
    """Settings (0: no bound) of which a larger value adds units and changes none: what was made is kept then."""
    encodes: ClassVar[tuple[str, str] | None] = None
    """Of a stage that makes token ids of transcripts: the input that holds them, and the input whose model's tokenizer
    is used. Whoever generates keeps ids for such stages alone."""
    makes: ClassVar[str] = "records"
    """``records``, ``model`` (a folder that an engine can load), or another kind of artifact, in a word."""
    splits: ClassVar[bool] = False
    """Whether the jobs of an array may share the work, each by ``shard`` and ``shards`` of its context."""
    choices: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Setting -> what may be chosen -> what that does, in words: for settings that name parts of the stage."""
    launched: ClassVar[bool] = False
    """Whether a cluster's launcher gives it processes, on whose number its check depends."""
    gathers: ClassVar[bool] = False
    """Whether it makes do with those of its inputs that are there, where a loop of the recipe ended before it made the
    others."""
    disclosure: ClassVar[str] = ""
    """A sentence that the results show where the stage stands in for the real thing."""

    def __init__(self, config: C):
        self.config = config

    @classmethod
    def product(cls) -> str:
        """Return the name of what the stage's folder holds: the record type, or the artifact."""
        return cls.record.__name__ if cls.record is not None else cls.makes

    @classmethod
    def asks_models(cls) -> bool:
        """Return whether a stage of this kind asks engines."""
        return cls.engines is not Stage.engines

    @classmethod
    def reads_files(cls) -> bool:
        """Return whether an input takes files of others."""
        return any(cls.takes.get(port.removesuffix("?"), "records") == "records" for port in cls.ports)

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        """Raise UserError for what can be known to be wrong before any stage runs.

        ``inputs``: the files and folders that exist by then; what other stages will make is not among them."""

    def check_ready(self, inputs: Mapping[str, Sequence[Path]], seed: int) -> None:
        """Raise UserError for what can be known to be wrong once all ``inputs`` (port -> paths) are there, on the
        machine where the stage runs. It comes before anything that was made before is removed. To read all of the
        inputs is for :meth:`run`."""

    @abstractmethod
    async def run(self, context: StageContext) -> None:
        """Fill ``context.output``. The caller writes the manifest afterwards."""

    async def prepare_launch(self, context: StageContext) -> None:
        """Write down what a cluster launcher's own processes are to do, such as ``job.yaml`` of a training. Most stages
        have nothing of the kind: their jobs run the stage itself."""

    def engines(self) -> tuple[str, ...]:
        """Return the names that this stage will ask ``services.engine`` for. Stages that make one of these models
        become its inputs."""
        return ()

    @property
    def needs_chat(self) -> bool:
        """Whether these engines must take conversations."""
        return False

    def fingerprint(self, inputs: Mapping[str, Sequence[str]], seed: int) -> str:
        """Return an id of what the stage is asked to do. ``inputs``: port name -> digests."""
        return content_id("stage", self.kind, self.version, self.settings(), dict(inputs), seed)

    def previous_version(self, before: Mapping[str, int]) -> Stage[C] | None:
        """Return the stage with the smaller values ``before`` of its incremental settings. None where it has none, or
        where one of them has become smaller: then what was made before is not a part of what is to be made."""
        now = {name: getattr(self.config, name) for name in self.incremental}
        if not now or before.keys() != now.keys():
            return None
        if any((now[name] or math.inf) < (before[name] or math.inf) for name in now):
            return None
        return type(self)(replace(self.config, **before))  # type: ignore[type-var]

    def digest(self, output: Path) -> str:
        """Return the digest of what was made: of the records in any order, or of all files of an artifact."""
        return folder_sums(output).digest if self.makes == "records" else digest_tree(output)

    def settings(self) -> dict[str, Any]:
        """Return the configuration as plain data, without what only concerns speed."""
        return _settings_of(self.config)


def _settings_of(config: Any) -> dict[str, Any]:
    stated = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if not f.metadata.get("runtime") and not (f.metadata.get("added") and value == f.default):
            stated[f.name] = _plain(value)
    return stated


def _plain(value: Any) -> Any:
    """Return data for a fingerprint: a file counts by its content, not by where it lies."""
    if is_dataclass(value):
        return _settings_of(value)
    if isinstance(value, Path):
        if not value.exists():
            return str(value)
        return f"{value.name} {digest_file(value) if value.is_file() else digest_tree(value)}"
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value

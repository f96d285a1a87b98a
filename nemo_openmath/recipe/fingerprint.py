"""What each stage of a run is asked to do now: its kind, settings, seed and the digests of what it reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nemo_openmath.core.errors import DamagedFile, of_the_system
from nemo_openmath.core.records import read_manifest
from nemo_openmath.core.records.lineage import remembered_digest
from nemo_openmath.core.stage import Stage
from nemo_openmath.recipe.file import Recipe
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.recipe.teacher import rendering_digest

_DIGESTS = ".digests"


class NotReady(Exception):
    """An input of the stage has not been made."""


class Fingerprints:
    """Fingerprints of the stages of a recipe whose run lies in ``output``. A file is read once for its digest."""

    def __init__(self, recipe: Recipe, output: Path):
        self._recipe, self._output = recipe, output
        self._digests: dict[Path, str] = {}

    def of(self, entry: StageEntry) -> tuple[str, dict[str, str]]:
        """Return the fingerprint and the digest of each input by its name. Raises NotReady."""
        by_port: dict[str, list[str]] = {}
        digests: dict[str, str] = {}
        for port, names in self.inputs(entry).items():
            for name in names:
                digests[str(name)] = self._digest(name)
                by_port.setdefault(port, []).append(digests[str(name)])
        for engine in entry.stage.engines():
            digests[engine] = self._engine_digest(engine)
            by_port.setdefault("engine", []).append(digests[engine])
        return entry.stage.fingerprint(by_port, entry.seed), digests

    def inputs(self, entry: StageEntry) -> dict[str, tuple[str | Path, ...]]:
        """Return what a stage reads, by port; of one that gathers what is there, without the stages that are not
        needed."""
        if not entry.stage.gathers:
            return entry.inputs
        return {
            port: tuple(n for n in names if isinstance(n, Path) or not self.needless(self._recipe.stages[n]))
            for port, names in entry.inputs.items()
        }

    def needless(self, entry: StageEntry) -> str:
        """Return why a stage is not needed: what a decision says that ended the loop before it; "" where it is needed,
        or where nobody knows yet."""
        for gate in entry.gates:
            decision = self._recipe.stages[gate]
            try:
                manifest = read_manifest(self._output / gate)
                if manifest is None or manifest.fingerprint != self.of(decision)[0]:
                    return ""
            except (DamagedFile, NotReady):
                return ""
            if reason := manifest.metrics.get("stop", ""):
                return f"the loop ended with {gate}: {reason}"
        return ""

    def of_version(self, entry: StageEntry, stage: Stage) -> str:
        """Return the fingerprint that the entry would have with another stage of its kind. Raises NotReady."""
        return self.of(replace(entry, stage=stage))[0]

    def _digest(self, name: str | Path) -> str:
        if isinstance(name, Path):
            return self._file_digest(name)
        try:
            manifest = read_manifest(self._output / name)
        except DamagedFile:
            manifest = None
        if manifest is None:
            raise NotReady(f"stage {name!r} has not finished")
        return manifest.digest

    def _file_digest(self, path: Path) -> str:
        if not path.exists():
            raise NotReady(f"no such file or folder: {path}")
        if path not in self._digests:
            try:
                self._digests[path] = remembered_digest(path, self._output / _DIGESTS)
            except OSError as error:
                raise of_the_system(error, error.filename or path) or error from error
        return self._digests[path]

    def _engine_digest(self, engine: str) -> str:
        if engine == "teacher" and engine not in self._recipe.stages:
            return self._recipe.teacher.digest()
        student = self._recipe.student
        rendering = rendering_digest(student.reasoning_effort, student.template_options)
        return self._digest(engine if engine in self._recipe.stages else self._recipe.relative(engine)) + rendering

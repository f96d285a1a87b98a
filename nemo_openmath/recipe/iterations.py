"""``iterations:`` of a recipe file: a loop that makes one model after another, written once.

    iterations:
      most: 3
      start: student1             # the model that iteration 1 generates with
      model: student              # the stage below that makes the model of an iteration
      results: results            # the stage below that measures it on held-out problems
      metric: tir pass@1
      stop: {gains_below_interval: 2, tokens: 50000000}
      train_from: ./base          # or `last`
      mixture: {of: kept, always: [summarized], take: all}
      stages:
        tir: {run: rollout.generate, from: problems, engine: newest, ...}
        kept: {run: solutions.filter, from: graded}
        rows: {run: solutions.rows, from: mixture}
        train: {run: training.sft, from: {packs: packs, model: initial}, ...}

When the file is read, the loop becomes ordinary stages, ``tir-1``, ``kept-1``, ..., ``tir-2``, and with them
``decision-1``, ``decision-2`` (evaluation/iterations.py) and ``best``. What runs, resumes, launches or shows stages
needs to know nothing of loops, but one thing: a stage has the *gates* ``decision-1`` to ``decision-(I-1)``, and where
one of these ends the loop, the stage is not needed.

Inside the loop the name of a stage of the loop means that of the same iteration, and these words have a meaning:

- ``newest``: the model of the iteration before; in iteration 1 ``start``.
- ``initial``: the model that a training begins with, as ``train_from`` says.
- ``mixture``: what is trained on, as ``mixture`` says.
- ``{iteration}`` in a text: the number of the iteration.

``tir-2: {samples: 8}`` among the ordinary stages changes settings of one iteration.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from nemo_openmath.core.build import Builder, Key
from nemo_openmath.core.config import Source
from nemo_openmath.core.stage import Stage, stage_kinds
from nemo_openmath.recipe.iteration_checks import LoopCheck
from nemo_openmath.recipe.iteration_settings import (
    BEST,
    DECISION,
    INITIAL,
    MIXTURE,
    NEWEST,
    SECTION,
    IterationsSettings,
    Loop,
    named_in,
)
from nemo_openmath.recipe.stage_entries import ENGINES

_NUMBER = "{iteration}"


def unroll(builder: Builder, source: Source, written: Any, stages: Mapping[str, Any], seed: int) -> Loop:
    """Return the stages of a recipe whose loop is ``written``; ``stages`` are the others, ``seed`` is the recipe's.

    Iteration I has the seed of its stage, or of the recipe, plus I - 1: no two iterations draw the same samples.
    Raises UserError for a loop that is wrong.
    """
    if not isinstance(written, dict):
        raise builder.error((SECTION,), "expected the settings of a loop", "write iterations: {most: 3, ...}")
    bodies = written.get("stages")
    key = (SECTION, "stages")
    if not isinstance(bodies, dict) or not bodies:
        raise builder.error(key, "a loop needs stages", "write stages: {name: {run: kind, ...}} below iterations:")
    for name, body in bodies.items():
        if not isinstance(body, dict) or not isinstance(body.get("run"), str):
            raise builder.error((*key, name), "a stage needs a kind", "write run: kind")
        if name in (NEWEST, INITIAL, MIXTURE, DECISION):
            raise builder.error((*key, name), f"{name!r} has a meaning of its own in a loop", "rename the stage")
    settings = builder.build(IterationsSettings, {k: v for k, v in written.items() if k != "stages"}, (SECTION,))
    return _Unroller(builder, source, settings, bodies, stages, seed).loop()


class _Unroller:
    """Makes the stages of all iterations."""

    def __init__(
        self,
        builder: Builder,
        source: Source,
        settings: IterationsSettings,
        bodies: Mapping[str, Any],
        outside: Mapping[str, Any],
        seed: int,
    ):
        self._builder, self._source, self._settings, self._seed = builder, source, settings, seed
        self._bodies, self._outside = bodies, outside
        self._made: dict[str, Any] = {}
        self._body: dict[str, str] = {}
        self._iteration: dict[str, int] = {}
        self._gates: dict[str, tuple[str, ...]] = {}
        self._written: dict[Key, Key] = {}

    def loop(self) -> Loop:
        LoopCheck(self._builder, self._settings, self._bodies, self._outside).check()
        settings, decisions = self._settings, [f"{DECISION}-{i}" for i in range(1, self._settings.most + 1)]
        for number in range(1, settings.most + 1):
            gates = tuple(decisions[: number - 1])
            if settings.mixture is not None and settings.mixture.take == "best":
                self._add(f"{MIXTURE}-{number}", self._best_of(number), number, gates, {(): (SECTION, MIXTURE)})
            for name, body in self._bodies.items():
                self._add(f"{name}-{number}", self._of_iteration(name, body, number), number, gates, body=name)
            places = {("from", "results"): "results", ("from", "generated"): "stages", (): ""}
            where = {below: (SECTION, setting) if setting else (SECTION,) for below, setting in places.items()}
            self._add(decisions[number - 1], self._decision(number), number, gates, where)
        has_start = settings.start_results is not None
        start = [self._path(settings.start, "start", (SECTION, "model"))] if has_start else []
        models = [*start, *(f"{settings.model}-{i}" for i in range(1, settings.most + 1))]
        best = {"run": "iterations.best", "from": {"decision": decisions, "models": models}}
        self._add(BEST, best, 0, (), {(): (SECTION,), ("from", "models"): (SECTION, "model")})
        return Loop(
            settings=settings,
            stages=self._placed(),
            body=self._body,
            iteration=self._iteration,
            gates=self._gates,
            decisions=tuple(decisions),
            _written=self._written,
            _source=self._source,
        )

    # -- the stages of an iteration ------------------------------------------------------------------------------------

    def _add(
        self,
        name: str,
        entry: dict[str, Any],
        number: int,
        gates: tuple[str, ...],
        where: Mapping[Key, Key] | None = None,
        body: str = "",
    ) -> None:
        """Add a stage. ``where``: keys within it -> where the file says them; of a stage of the loop, where that is."""
        key = ("stages", name)
        if (above := self._outside.get(name)) is not None:
            if not isinstance(above, dict) or "run" in above:
                problem = f"is a stage that iterations: makes ({name})"
                remedy = "rename it" if name == BEST else "leave out run to change its settings, or rename it"
                raise self._builder.error(key, problem, remedy)
            entry = _laid_over(entry, above)
        self._made[name] = entry
        self._body[name] = body or name
        self._gates[name] = gates
        if number:
            self._iteration[name] = number
        for below, written in (where or {(): (SECTION, "stages", body)}).items():
            self._written[(*key, *below)] = written

    def _of_iteration(self, name: str, body: Mapping[str, Any], number: int) -> dict[str, Any]:
        """A stage of the loop as it is in one iteration."""
        entry: dict[str, Any] = _numbered(copy.deepcopy(dict(body)), number)
        key = (SECTION, "stages", name)
        if "from" in entry:
            entry["from"] = self._inputs(entry["from"], number, (*key, "from"))
        for engine in ENGINES:
            if engine in entry:
                entry[engine] = self._named(entry[engine], number, (*key, engine))
        seed = entry.get("seed", self._seed)
        if number > 1 and type(seed) is int:  # another type is refused when the stage is read
            entry["seed"] = seed + number - 1
        if entry["run"] == "evaluation.metrics":
            label = entry.setdefault("checkpoint", f"iteration{number}")
            if label == body.get("checkpoint"):
                problem = f"{label!r} would be the label of all iterations"
                raise self._builder.error((*key, "checkpoint"), problem, f"write iteration{_NUMBER}")
        return entry

    def _inputs(self, written: Any, number: int, key: Key) -> Any:
        if isinstance(written, dict):
            return {port: self._named(names, number, (*key, str(port))) for port, names in written.items()}
        return self._named(written, number, key)

    def _named(self, names: Any, number: int, key: Key) -> Any:
        """What a stage reads, in one iteration: a name stays one name where it means one."""
        if isinstance(names, str):
            meant = self._meant(names, number, key)
            return meant[0] if len(meant) == 1 else meant
        if isinstance(names, list):
            return [m for name in names for m in (self._meant(name, number, key) if isinstance(name, str) else [name])]
        return names

    def _meant(self, name: str, number: int, key: Key) -> list[str]:
        """The stages and paths that a name of the loop means in an iteration."""
        settings = self._settings
        if name in self._bodies:
            return [f"{name}-{number}"]
        if name == INITIAL and settings.train_from != "last":
            return [self._path(settings.train_from, "train_from", key)]
        if name in (NEWEST, INITIAL):
            return [f"{settings.model}-{number - 1}" if number > 1 else self._path(settings.start, "start", key)]
        if name == MIXTURE and settings.mixture is not None:
            always = [self._path(path, "mixture.always", key) for path in settings.mixture.always]
            added = {
                "new": [f"{of}-{number}" for of in self._settings.added],
                "all": self._until(number),
                "best": [f"{MIXTURE}-{number}"],
            }
            return [*always, *added[settings.mixture.take]]
        return [name]

    def _path(self, name: str, setting: str, key: Key) -> str:
        """A name that a setting of the loop gives, as the stage at ``key`` has to write it: a path is relative to the
        file that says it."""
        folder = self._builder.base((SECTION, *setting.split(".")))
        return str(folder / name) if "/" in name and folder != self._builder.base(key) else name

    def _until(self, number: int) -> list[str]:
        """What all iterations up to one have added to the mixture, the oldest first."""
        return [f"{of}-{i}" for i in range(1, number + 1) for of in self._settings.added]

    def _best_of(self, number: int) -> dict[str, Any]:
        mixture = self._settings.mixture
        assert mixture is not None
        return {
            "run": "solutions.best_of",
            "from": self._until(number),
            "allow_empty": all(self._bodies[name].get("allow_empty") is True for name in self._settings.added),
            "per_problem": mixture.per_problem,
            "order": list(mixture.order),
        }

    def _decision(self, number: int) -> dict[str, Any]:
        settings = self._settings
        has_start = settings.start_results is not None
        at = (SECTION, "results")
        first = [self._path(settings.start_results, "start_results", at)] if settings.start_results else []
        inputs: dict[str, Any] = {"results": [*first, *(f"{settings.results}-{i}" for i in range(1, number + 1))]}
        if number > 1:
            inputs["before"] = f"{DECISION}-{number - 1}"
        kinds = stage_kinds()
        asking = [name for name, body in self._bodies.items() if _asks(kinds.get(body["run"]))]
        if asking:
            inputs["generated"] = [f"{name}-{number}" for name in asking]
        return {
            "run": "iterations.decide",
            "from": inputs,
            "models": [*([settings.start] if has_start else []), *(f"{settings.model}-{i + 1}" for i in range(number))],
            "metric": settings.metric,
            "first": 0 if has_start else 1,
            "gains_below_interval": settings.stop.gains_below_interval,
            "tokens": settings.stop.tokens,
        }

    def _placed(self) -> dict[str, Any]:
        """All stages: those of the loop stand before the first one outside of it that names one of them."""
        placed: dict[str, Any] = {}
        for name, entry in self._outside.items():
            if name in self._made:
                continue
            if isinstance(entry, dict) and not self._made.keys().isdisjoint(named_in(entry)):
                placed |= self._made
            placed[name] = entry
        return placed | self._made


def _asks(kind: type[Stage[Any]] | None) -> bool:
    """Return whether stages of a kind hold what they asked models for."""
    return kind is not None and kind.asks_models() and kind.makes == "records"


def _numbered(value: Any, number: int) -> Any:
    """Plain data with the number of the iteration in its texts."""
    if isinstance(value, str):
        return value.replace(_NUMBER, str(number))
    if isinstance(value, dict):
        return {name: _numbered(below, number) for name, below in value.items()}
    return [_numbered(below, number) for below in value] if isinstance(value, list) else value


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, section by section; null takes a setting out."""
    out = dict(below)
    for name, value in above.items():
        if value is None:
            out.pop(name, None)
        elif isinstance(value, dict) and isinstance(out.get(name), dict):
            out[name] = _laid_over(out[name], value)
        else:
            out[name] = value
    return out

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.build import Builder, Key, Origin, nearest
from nemo_openmath.core.config import Source
from nemo_openmath.core.stage import Stage, stage_kinds
from nemo_openmath.evaluation.iterations import parse_metric
from nemo_openmath.evaluation.stage import ComputeMetrics
from nemo_openmath.inference.rollout.stage import Generate
from nemo_openmath.recipe.stage_entries import ENGINES, StageEntry, foreign_stage, noun
from nemo_openmath.synthesis.solutions.best_of import ORDER, Criterion

SECTION, BEST, NEWEST, INITIAL, MIXTURE, DECISION = "iterations", "best", "newest", "initial", "mixture", "decision"
_NUMBER = "{iteration}"


@dataclass(frozen=True)
class StopSettings:
    """When the loop ends before ``most`` iterations."""

    gains_below_interval: PositiveInt | None = 2
    """The loop ends after so many iterations in a row whose gain is below its interval: the lower end of the paired 95%
    interval of this model minus the best one before it, over the same held-out problems, is not above 0. Two, because
    one such iteration may be bad luck of the sampling or of the training. ``null``: it never ends for that."""
    tokens: PositiveInt | None = None
    """No further iteration begins once models wrote so many tokens in the stages of all iterations together: solutions,
    selections, judgments, summaries, those of the teacher and those of evaluation, and replies that no stage kept.
    What was written for units that a kill cut off is not known. The iteration that spends the last of them is ended.
    ``null``: no limit."""


@dataclass(frozen=True)
class MixtureSettings:
    """What ``mixture`` means in the loop."""

    of: str | list[str]
    """The stage of the loop whose records an iteration adds, such as its filter, or a list of them. For
    ``order``, the last of a list is the newest of its iteration."""
    always: list[str] = field(default_factory=list)
    """Stages outside of the loop, and folders, whose records are in every mixture."""
    take: Literal["new", "all", "best"] = "all"
    """``new``: the records of this iteration alone. ``all``: those of all iterations until now. ``best``: of these the
    best ``per_problem`` of each problem."""
    per_problem: PositiveInt = 4
    """Of ``best``: how many solutions of a problem."""
    order: list[Criterion] = field(default_factory=lambda: list(ORDER))
    """Of ``best``: what comes first, as in the stage ``solutions.best_of``."""


@dataclass(frozen=True)
class IterationsSettings:
    """What ``iterations`` says beside its stages."""

    most: PositiveInt
    """How many iterations are made, at most."""
    start: str
    """The model that iteration 1 generates with: a stage outside of the loop, or a model folder."""
    model: str
    """The stage of the loop that makes the model of an iteration."""
    results: str
    """The stage of the loop, of the kind ``evaluation.metrics``, that measures this model on held-out problems."""
    metric: str = "tir pass@1"
    """Mode and metric by which models are compared: a share of which more is better."""
    start_results: str | None = None
    """The results of ``start`` on the same problems: a stage outside of the loop, or its folder. With them the first
    iteration has a gain, too, and ``start`` itself is the best where no iteration is better. ``null``: the first
    iteration is compared with nothing."""
    train_from: str = "last"
    """The model that ``initial`` means: ``last`` is the same as ``newest``; anything else is a stage outside of the
    loop or a model folder, such as the base model."""
    stop: StopSettings = field(default_factory=StopSettings)
    """When the loop ends before ``most`` iterations."""
    mixture: MixtureSettings | None = None
    """What ``mixture`` means in the loop; ``null`` where no stage names it."""

    def __post_init__(self) -> None:
        parse_metric(self.metric)


@dataclass(frozen=True)
class Loop:
    """A loop that has become ordinary stages."""

    settings: IterationsSettings
    stages: dict[str, Any]
    """All stages of the recipe as they are written, those of the loop among them."""
    body: Mapping[str, str]
    """Stage of an iteration -> the stage of the loop that it comes from; of those that the loop adds, itself."""
    iteration: Mapping[str, int]
    """Stage -> its iteration."""
    gates: Mapping[str, tuple[str, ...]]
    """Stage of an iteration -> the decisions that must not have ended the loop."""
    decisions: tuple[str, ...]
    _written: Mapping[Key, Key]
    """Key of a stage, or of an input of one -> where the file says it."""
    _source: Source

    def written(self, key: Key) -> Key:
        """Return the key under which the file says a setting of a stage."""
        if key in self._source.origins:
            return key
        for length in range(len(key), 1, -1):
            if (written := self._written.get(key[:length])) is not None:
                is_body = written[:2] == (SECTION, "stages") and len(written) == 3
                return written + key[length:] if is_body else written
        return key

    def origin(self, key: Key) -> Origin:
        """Return where a setting was written."""
        return self._source.origin(self.written(key))

    def taken_out(self, key: Key) -> bool:
        """Return whether ``null`` was written for a setting that its stage leaves out."""
        written = self.written(key)
        return written[-1] == key[-1] and written in self._source.origins


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
        self._check()
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

    # -- what is wrong with a loop -------------------------------------------------------------------------------------

    def _check(self) -> None:
        settings, mixture = self._settings, self._settings.mixture
        self._check_body("model", settings.model, "model")
        self._check_body("results", settings.results)
        self._check_outside("start", settings.start, "model")
        if settings.start_results is not None:
            self._check_outside("start_results", settings.start_results, "metrics")
        if settings.train_from != "last":
            self._check_outside("train_from", settings.train_from, "model")
        if mixture is not None:
            for name in self._added:
                self._check_body("mixture.of", name)
            for name in mixture.always:
                self._check_outside("mixture.always", name)
        if SECTION in self._outside:
            raise self._builder.error(("stages", SECTION), "is the folder of the loop's reports", "rename the stage")
        words = {name for body in self._bodies.values() for name in _names(body)}
        if NEWEST not in words and (INITIAL not in words or settings.train_from != "last"):
            problem = f"no stage of it names {NEWEST!r}: all iterations would do the same"
            raise self._builder.error((SECTION, "stages"), problem, "write engine: newest where solutions are sampled")
        if (MIXTURE in words) != (mixture is not None):
            problem = "no stage names it" if mixture is not None else f"a stage reads {MIXTURE!r}, and it is not set"
            remedy = (
                "write from: mixture in the stage that makes rows"
                if mixture is not None
                else "write mixture: {of: ...}"
            )
            raise self._builder.error((SECTION, MIXTURE), problem, remedy)
        if settings.model not in self._above(settings.results):
            problem = f"{settings.results!r} does not measure {settings.model!r}: nothing that it reads asks it"
            raise self._builder.error(
                (SECTION, "results"), problem, f"write engine: {settings.model} where it is asked"
            )

    def _check_body(self, setting: str, name: str, product: str = "") -> None:
        if name not in self._bodies:
            problem = f"no stage of the loop is called {name!r}"
            raise self._builder.error((SECTION, *setting.split(".")), problem, nearest(name, list(self._bodies)))
        self._check_product(setting, name, stage_kinds().get(self._bodies[name]["run"]), product, self._bodies)

    def _check_outside(self, setting: str, name: str, product: str = "") -> None:
        """Refuse a stage or path of a setting that is not there, is made of the loop, or makes something else."""
        key = (SECTION, *setting.split("."))
        if "/" in name:
            self._check_product(setting, name, foreign_stage(self._builder.base(key) / name), product, {})
            return
        if name not in self._outside:
            problem = f"no stage outside of the loop is called {name!r}"
            remedy = f"{nearest(name, list(self._outside))} (a path has a /)"
            raise self._builder.error(key, problem, remedy)
        todo, seen = [name], {name}
        while todo:
            body = self._outside.get(at := todo.pop())
            read = set(_names(body)) if isinstance(body, dict) else set()
            if of_loop := sorted(filter(self._is_of_loop, read)):
                problem = f"{at!r} reads {of_loop[0]!r}, which the loop makes" + (
                    f", and {name!r} needs it" * (at != name)
                )
                raise self._builder.error(key, problem, "name a stage that can be made before the loop")
            todo += read - seen
            seen |= read
        body = self._outside[name]
        kind = stage_kinds().get(str(body.get("run"))) if isinstance(body, dict) else None
        self._check_product(setting, name, kind, product, self._outside)

    def _check_product(
        self, setting: str, name: str, kind: type[Stage[Any]] | None, product: str, others: Mapping[str, Any]
    ) -> None:
        """Refuse what a stage makes that is not the ``product`` of a setting; a kind that is none is refused later."""
        if kind is None or not product or kind.product() == product:
            return
        kinds = {n: stage_kinds().get(str(b.get("run"))) for n, b in others.items() if isinstance(b, dict)}
        right = ", ".join(n for n, k in kinds.items() if k is not None and k.product() == product)
        problem = f"{name!r} ({kind.kind}) makes {noun(kind.product())}, not {noun(product)}"
        remedy = f"name a stage that makes it{': ' + right if right else ''}"
        raise self._builder.error((SECTION, *setting.split(".")), problem, remedy)

    def _is_of_loop(self, name: str) -> bool:
        body, _, number = name.rpartition("-")
        return name == BEST or (number.isdecimal() and body in {*self._bodies, DECISION, MIXTURE})

    def _above(self, name: str) -> set[str]:
        """The stages of the loop from which a stage of it is made, in the same iteration."""
        seen: set[str] = set()
        todo = [name]
        while todo:
            names = set(_names(self._bodies[todo.pop()])) & self._bodies.keys()
            todo += names - seen
            seen |= names
        return seen

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
                "new": [f"{of}-{number}" for of in self._added],
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

    @property
    def _added(self) -> list[str]:
        """The stages of the loop whose records an iteration adds to the mixture."""
        of = self._settings.mixture.of if self._settings.mixture is not None else []
        return [of] if isinstance(of, str) else of

    def _until(self, number: int) -> list[str]:
        """What all iterations up to one have added to the mixture, the oldest first."""
        return [f"{of}-{i}" for i in range(1, number + 1) for of in self._added]

    def _best_of(self, number: int) -> dict[str, Any]:
        mixture = self._settings.mixture
        assert mixture is not None
        return {
            "run": "solutions.best_of",
            "from": self._until(number),
            "allow_empty": all(self._bodies[name].get("allow_empty") is True for name in self._added),
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
            if isinstance(entry, dict) and not self._made.keys().isdisjoint(_names(entry)):
                placed |= self._made
            placed[name] = entry
        return placed | self._made


def check_metric(loop: Loop, entries: Mapping[str, StageEntry], builder: Builder) -> None:
    """Refuse a metric that the results of an iteration will not hold, and one whose solutions another model than that
    of the iteration samples: nobody wants to know that after a training. Raises UserError."""
    results = entries.get(f"{loop.settings.results}-1")
    if results is None or not isinstance(results.stage, ComputeMetrics):
        return
    pair, key = parse_metric(loop.settings.metric), (SECTION, "metric")
    samples: dict[str, int] = {}
    todo = [results]
    while todo:
        entry = todo.pop()
        if isinstance(entry.stage, Generate):
            config = entry.stage.config
            samples[config.mode] = max(samples.get(config.mode, 0), config.samples)
            if config.mode == pair.mode_before and not _made_of(config.engine, f"{loop.settings.model}-1", entries):
                body = loop.body.get(entry.name, entry.name)
                problem = (
                    f"{body!r}, of which {loop.settings.metric!r} is measured, does not ask {loop.settings.model!r}"
                )
                remedy = f"write engine: {loop.settings.model} there, or measure it in a stage of its own"
                raise builder.error((SECTION, "results"), problem, remedy)
        else:
            names = entry.inputs.get("generations", ())
            todo += [entries[name] for name in names if isinstance(name, str) and name in entries]
    if not samples:
        return
    if pair.mode_before not in samples:
        problem = f"{loop.settings.results!r} has no solutions of mode {pair.mode_before!r}"
        raise builder.error(key, problem, f"it has {', '.join(sorted(samples))}")
    family, _, k = pair.metric_before.partition("@")
    most, ks = samples[pair.mode_before], results.stage.config.ks
    if family in ("pass", "maj") and pair.metric_before != "pass@1" and (int(k) not in ks or int(k) > most):
        problem = f"{loop.settings.results!r} computes no {pair.metric_before} (ks {ks}, {most} samples)"
        raise builder.error(key, problem, "write its k into ks, and as many samples")


def _asks(kind: type[Stage[Any]] | None) -> bool:
    """Return whether stages of a kind hold what they asked models for."""
    return kind is not None and kind.asks_models() and kind.makes == "records"


def _made_of(name: str, model: str, entries: Mapping[str, StageEntry]) -> bool:
    """Return whether a model is another one, or is made from it, such as its quantized export."""
    if name == model or name not in entries:
        return name == model
    inputs = [i for names in entries[name].inputs.values() for i in names if isinstance(i, str)]
    return any(_made_of(i, model, entries) for i in inputs)


def _names(entry: Mapping[str, Any]) -> Iterator[str]:
    """The stages and paths that a stage names: its inputs, and the models that answer it."""
    inputs = entry.get("from")
    for value in [*(inputs.values() if isinstance(inputs, dict) else [inputs]), *(entry.get(e) for e in ENGINES)]:
        yield from (name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str))


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

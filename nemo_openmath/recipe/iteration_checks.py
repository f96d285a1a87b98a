"""What is wrong with a loop of iterations (iterations.py), before it is unrolled and when its stages are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_openmath.core.build import Builder, nearest
from nemo_openmath.core.stage import Stage, stage_kinds
from nemo_openmath.evaluation.iterations import parse_metric
from nemo_openmath.evaluation.stage import ComputeMetrics
from nemo_openmath.inference.rollout.stage import Generate
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
from nemo_openmath.recipe.stage_entries import StageEntry, foreign_stage, noun


@dataclass(frozen=True)
class LoopCheck:
    """The loop that a recipe file writes, before its stages are made."""

    builder: Builder
    settings: IterationsSettings
    bodies: Mapping[str, Any]
    """The stages of the loop."""
    outside: Mapping[str, Any]
    """The other stages of the recipe."""

    def check(self) -> None:
        """Raise UserError for what is wrong with the loop."""
        settings, mixture = self.settings, self.settings.mixture
        self._check_body("model", settings.model, "model")
        self._check_body("results", settings.results)
        self._check_outside("start", settings.start, "model")
        if settings.start_results is not None:
            self._check_outside("start_results", settings.start_results, "metrics")
        if settings.train_from != "last":
            self._check_outside("train_from", settings.train_from, "model")
        if mixture is not None:
            for name in self.settings.added:
                self._check_body("mixture.of", name)
            for name in mixture.always:
                self._check_outside("mixture.always", name)
        if SECTION in self.outside:
            raise self.builder.error(("stages", SECTION), "is the folder of the loop's reports", "rename the stage")
        words = {name for body in self.bodies.values() for name in named_in(body)}
        if NEWEST not in words and (INITIAL not in words or settings.train_from != "last"):
            problem = f"no stage of it names {NEWEST!r}: all iterations would do the same"
            raise self.builder.error((SECTION, "stages"), problem, "write engine: newest where solutions are sampled")
        if (MIXTURE in words) != (mixture is not None):
            problem = "no stage names it" if mixture is not None else f"a stage reads {MIXTURE!r}, and it is not set"
            remedy = (
                "write from: mixture in the stage that makes rows"
                if mixture is not None
                else "write mixture: {of: ...}"
            )
            raise self.builder.error((SECTION, MIXTURE), problem, remedy)
        if settings.model not in self._above(settings.results):
            problem = f"{settings.results!r} does not measure {settings.model!r}: nothing that it reads asks it"
            raise self.builder.error((SECTION, "results"), problem, f"write engine: {settings.model} where it is asked")

    def _check_body(self, setting: str, name: str, product: str = "") -> None:
        if name not in self.bodies:
            problem = f"no stage of the loop is called {name!r}"
            raise self.builder.error((SECTION, *setting.split(".")), problem, nearest(name, list(self.bodies)))
        self._check_product(setting, name, stage_kinds().get(self.bodies[name]["run"]), product, self.bodies)

    def _check_outside(self, setting: str, name: str, product: str = "") -> None:
        """Refuse a stage or path of a setting that is not there, is made of the loop, or makes something else."""
        key = (SECTION, *setting.split("."))
        if "/" in name:
            self._check_product(setting, name, foreign_stage(self.builder.base(key) / name), product, {})
            return
        if name not in self.outside:
            problem = f"no stage outside of the loop is called {name!r}"
            remedy = f"{nearest(name, list(self.outside))} (a path has a /)"
            raise self.builder.error(key, problem, remedy)
        todo, seen = [name], {name}
        while todo:
            body = self.outside.get(at := todo.pop())
            read = set(named_in(body)) if isinstance(body, dict) else set()
            if of_loop := sorted(filter(self._is_of_loop, read)):
                problem = f"{at!r} reads {of_loop[0]!r}, which the loop makes" + (
                    f", and {name!r} needs it" * (at != name)
                )
                raise self.builder.error(key, problem, "name a stage that can be made before the loop")
            todo += read - seen
            seen |= read
        body = self.outside[name]
        kind = stage_kinds().get(str(body.get("run"))) if isinstance(body, dict) else None
        self._check_product(setting, name, kind, product, self.outside)

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
        raise self.builder.error((SECTION, *setting.split(".")), problem, remedy)

    def _is_of_loop(self, name: str) -> bool:
        body, _, number = name.rpartition("-")
        return name == BEST or (number.isdecimal() and body in {*self.bodies, DECISION, MIXTURE})

    def _above(self, name: str) -> set[str]:
        """Return the stages of the loop from which a stage of it is made, in the same iteration."""
        seen: set[str] = set()
        todo = [name]
        while todo:
            names = set(named_in(self.bodies[todo.pop()])) & self.bodies.keys()
            todo += names - seen
            seen |= names
        return seen


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


def _made_of(name: str, model: str, entries: Mapping[str, StageEntry]) -> bool:
    """Return whether a model is another one, or is made from it, such as its quantized export."""
    if name == model or name not in entries:
        return name == model
    inputs = [i for names in entries[name].inputs.values() for i in names if isinstance(i, str)]
    return any(_made_of(i, model, entries) for i in inputs)

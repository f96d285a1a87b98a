"""What ``iterations:`` of a recipe file says (recipe/iterations.py), and the loop that it becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.build import Key, Origin
from nemo_openmath.core.config import Source
from nemo_openmath.evaluation.iterations import parse_metric
from nemo_openmath.recipe.stage_entries import ENGINES
from nemo_openmath.synthesis.solutions.best_of import ORDER, Criterion

SECTION, BEST, NEWEST, INITIAL, MIXTURE, DECISION = "iterations", "best", "newest", "initial", "mixture", "decision"


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

    @property
    def added(self) -> list[str]:
        """Return the stages of the loop whose records an iteration adds to the mixture."""
        of = self.mixture.of if self.mixture is not None else []
        return [of] if isinstance(of, str) else of


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


def named_in(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the stages and paths that a stage names: its inputs, and the models that answer it."""
    inputs = entry.get("from")
    for value in [*(inputs.values() if isinstance(inputs, dict) else [inputs]), *(entry.get(e) for e in ENGINES)]:
        yield from (name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str))

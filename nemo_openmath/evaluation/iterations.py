"""The decision after each iteration of a loop, and the model that is the best of it in the end.

A loop (``iterations:`` of a recipe) makes one model after another. After each, the model is compared with the best one
before it, problem by problem on the same held-out problems. Its *gain* is the mean difference; the gain is *below its
interval* where the lower end of the paired 95% interval is not above 0: the problems do not show that the model is
better. One such iteration may be bad luck, of the sampling or of the training; after several in a row another one is
not worth its tokens.

A decision is a pure function of the scores of all models up to now and of the tokens that models wrote. It holds the
rows of all iterations before it, so the last one tells the whole loop.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson

from nemo_openmath.core.bounds import Length, NonNegativeInt, PositiveInt
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import write_json
from nemo_openmath.core.records.store import count_tokens, record_lines
from nemo_openmath.core.stage import Stage, StageContext
from nemo_openmath.core.stage.controls import CONTROLS
from nemo_openmath.evaluation.intervals import share_interval
from nemo_openmath.evaluation.metrics import ProblemScores
from nemo_openmath.evaluation.paired import Pair, paired_difference
from nemo_openmath.evaluation.stage import read_scores

_BETTER = re.compile(r"(pass|maj|genselect|genselect-single)@[1-9]\d*")
DECISION, STOP = "decision.json", "stop.txt"
_NOT_OF_A_MODEL = ("manifest.json", "plan.json", "seconds.json")


def parse_metric(text: str) -> Pair:
    """Read the metric by which models are chosen, such as ``tir pass@1``. Raises UserError for what is none, and for
    costs, of which more is not better."""
    pair = Pair.parse(text)
    if (pair.mode_before, pair.metric_before) != (pair.mode_after, pair.metric_after):
        raise UserError(f"metric {text!r} compares two things", remedy="write one mode and metric: 'tir pass@1'")
    if not _BETTER.fullmatch(pair.metric_before):
        raise UserError(f"more of {pair.metric_before!r} is not better", remedy="write 'tir pass@1', or a maj@k")
    return pair


@dataclass(frozen=True)
class DecideConfig:
    """What a decision is made by. A loop of a recipe fills it in."""

    models: Annotated[tuple[str, ...], Length()]
    """The names of the models, in the order of the input ``results``."""
    metric: str = "tir pass@1"
    """Mode and metric by which models are compared; more is better."""
    first: NonNegativeInt = 1
    """The iteration that made the first of the models: 0 where it is the one that the loop starts with."""
    gains_below_interval: PositiveInt | None = 2
    """After so many iterations in a row whose gain is below its interval the loop ends. ``null``: never for that."""
    tokens: PositiveInt | None = None
    """No further iteration begins once models wrote so many tokens in the iterations. ``null``: no limit."""

    def __post_init__(self) -> None:
        parse_metric(self.metric)


class Decide(Stage[DecideConfig]):
    """Compare the model of an iteration with the best before it, and say whether the loop goes on."""

    kind = "iterations.decide"
    version = 2  # 2: tokens are all that models wrote, what no stage kept among them
    Config = DecideConfig
    makes = "decision"
    ports = {
        "results": "folders of evaluation.metrics on the same held-out problems, a model each, the newest last",
        "before?": "the decision after the iteration before",
        "generated?": "the stages of this iteration that ask models; what these wrote counts towards the budget",
    }
    takes = {"results": "metrics", "before": "decision", "generated": "records"}

    async def run(self, context: StageContext) -> None:
        decision = await asyncio.to_thread(self._decide, context)
        context.output.mkdir(parents=True, exist_ok=True)
        stop, marker = decision["stop"], context.output / STOP
        marker.unlink(missing_ok=True)
        if stop is not None:  # a job of a later iteration looks for this file, without Python
            marker.write_text(f"{stop['reason']}\n", encoding="utf-8")
        write_json(context.output / DECISION, decision)
        context.metrics |= {"iterations": decision, "stop": "" if stop is None else stop["reason"]}
        context.progress.log(describe(decision["iterations"][-1], decision["best"]) + (stop_text(stop) if stop else ""))

    def _decide(self, context: StageContext) -> dict[str, Any]:
        config = self.config
        scores = [read_scores(folder)[1] for folder in context.paths("results")]
        if len(scores) != len(config.models):
            raise UserError(f"{context.name}: {len(scores)} results of {len(config.models)} models")
        tokens = sum(map(tokens_in, context.paths("generated")))
        rows = [row for folder in context.paths("before") for row in read_decision(folder)["iterations"]]
        for number in range(len(rows), len(scores)):
            is_newest = number == len(scores) - 1
            rows.append(self._row(rows, scores, number, tokens if is_newest else 0))
        best = best_of(rows)
        return {
            "metric": config.metric,
            "iterations": rows,
            "best": {"iteration": best["iteration"], "model": best["model"]},
            "tokens": sum(row["tokens"] for row in rows),
            "stop": self._stop(rows),
        }

    def _row(
        self, rows: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[ProblemScores]], number: int, tokens: int
    ) -> dict[str, Any]:
        """What is known of the model ``number`` after its iteration; ``rows`` are those of the models before."""
        config, pair = self.config, parse_metric(self.config.metric)
        row: dict[str, Any] = {"iteration": config.first + number, "model": config.models[number], "tokens": tokens}
        # compared with itself where it is the first: a metric that was not computed is refused in the same words
        over = rows.index(best_of(rows)) if rows else number
        paired = paired_difference(
            scores[over],
            scores[number],
            pair,
            checkpoint_before=config.models[over],
            checkpoint_after=config.models[number],
        )
        own = np.array([s.values[pair.metric_after] for s in scores[number] if s.mode == pair.mode_after and s.values])
        low, high = share_interval(own)
        row |= {"value": float(own.mean()), "low": low, "high": high, "problems": len(own), "gain": None}
        if rows:
            fields = ("difference", "low", "high", "better", "worse", "problems")
            gain = {name: value for name, value in asdict(paired).items() if name in fields}
            below = paired.low is None or paired.low <= 0.0
            row["gain"] = {"over": config.models[over], **gain, "below_interval": below}
        return row

    def _stop(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The rule that ends the loop here, and why; None where it goes on."""
        config, in_a_row = self.config, 0
        for row in reversed(rows):
            if row["gain"] is None or not row["gain"]["below_interval"]:
                break
            in_a_row += 1
        if config.gains_below_interval is not None and in_a_row >= config.gains_below_interval:
            what = "the gain was" if in_a_row == 1 else f"{in_a_row} gains in a row were"
            reason = f"{what} below the interval ({config.metric})"
            return {"rule": "gains_below_interval", "iteration": rows[-1]["iteration"], "reason": reason}
        if config.tokens is not None and (spent := sum(row["tokens"] for row in rows)) >= config.tokens:
            reason = f"{spent:,} tokens were written, of a budget of {config.tokens:,}"
            return {"rule": "tokens", "iteration": rows[-1]["iteration"], "reason": reason}
        return None


@dataclass(frozen=True)
class BestConfig:
    """Settings of ``iterations.best``. There are none: the last decision says which model is the best."""


class Best(Stage[BestConfig]):
    """The best model of a loop, as its last decision marks it. Files of other stages are linked, not copied."""

    kind = "iterations.best"
    Config = BestConfig
    makes = "model"
    gathers = True
    ports = {
        "decision": "the decisions of a loop, the last one last",
        "models": "the models that it compares, in order",
    }
    takes = {"decision": "decision", "models": "model"}

    async def run(self, context: StageContext) -> None:
        decision, models = read_decision(context.paths("decision")[-1]), context.paths("models")
        if len(models) != len(decision["iterations"]):
            raise UserError(f"{context.name}: {len(models)} models of {len(decision['iterations'])} iterations")
        model = models[decision["iterations"].index(best_of(decision["iterations"]))]
        await asyncio.to_thread(_take_over, model, context.output)
        context.metrics["best"] = decision["best"]
        context.progress.log(f"the best is {decision['best']['model']}, of iteration {decision['best']['iteration']}")


def best_of(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the row of the best model: each one that was better than the best before it, in the mean over the problems
    of both. Of equal ones the earliest is the best."""
    best = rows[0]
    for row in rows[1:]:
        if row["gain"]["difference"] > 1e-12:
            best = row
    return best


def describe(row: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """Return a line about an iteration: its value, its gain, and whether it is the best until then."""
    text = f"iteration {row['iteration']} ({row['model']}): {row['value']:.1%}"
    if (gain := row["gain"]) is not None:
        low, high = gain["low"], gain["high"]
        text += f", {100 * gain['difference']:+.1f} over {gain['over']}"
        text += "" if low is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
        text += ", below its interval" if gain["below_interval"] else ""
    return text + ("; the best until now" if best["iteration"] == row["iteration"] else "")


def stop_text(stop: Mapping[str, Any]) -> str:
    """Return why a loop ended, to be put behind a line about its last iteration."""
    return f". The loop ends here: {stop['reason']}"


def read_decision(folder: Path) -> dict[str, Any]:
    """Return the decision in a folder. Raises UserError where there is none."""
    path = folder / DECISION
    try:
        decision = orjson.loads(path.read_bytes())
        return {name: decision[name] for name in ("metric", "iterations", "best", "tokens", "stop")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"not a decision ({error})", file=path, remedy="run its stage again") from error


def tokens_in(folder: Path) -> int:
    """Return the tokens that models wrote in a stage: for its records and drops, for what was asked again, and for
    controls. Of a stage that was made before they were counted, and of the competition, which has no drops, those of
    its generations."""
    if (tokens := count_tokens(folder)) is not None:
        return tokens + (count_tokens(folder / CONTROLS) or 0)
    rows = (orjson.loads(line) for _, _, line in record_lines([folder]))
    return sum(row["completion_tokens"] for row in rows if "completion_tokens" in row)


def _take_over(model: Path, output: Path) -> None:
    """Fill ``output`` with the files of a model. Those of a stage beside it are linked: nobody changes them in place.
    Others are copied, for their owner may."""
    beside = model.resolve().parent == output.resolve().parent
    for path in sorted(model.rglob("*")):
        inside = path.relative_to(model)
        if not path.is_file() or inside.parts[0] in _NOT_OF_A_MODEL or any(p.startswith(".") for p in inside.parts):
            continue
        target = output / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # of an attempt that was killed
        if beside:
            try:
                os.link(path, target)
                continue
            except OSError:  # a file system without links
                pass
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(path, temporary)
        temporary.replace(target)

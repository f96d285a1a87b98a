"""Averages and merges of whole checkpoints, Hugging Face or Megatron, streamed. The arithmetic is in
:mod:`~nemo_openmath.checkpoints.merge.arithmetic`; here is which checkpoints go together."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from nemo_openmath.chat.same_tokenizer import tokenizer_difference
from nemo_openmath.checkpoints.checkpoint import Checkpoint, Kind, lineage, open_checkpoint, write_checkpoint
from nemo_openmath.checkpoints.formats.step_folders import spaced_steps
from nemo_openmath.checkpoints.lazy import LazyTensor
from nemo_openmath.checkpoints.merge.arithmetic import merged
from nemo_openmath.checkpoints.methods import NEEDS_BASE, Method
from nemo_openmath.checkpoints.model_files import changed_config
from nemo_openmath.checkpoints.output import building
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.outputs import refuse_foreign_folder
from nemo_openmath.core.records.lineage import BLAKE3, Lineage
from nemo_openmath.models.hf_config import ARCHITECTURES, describe
from nemo_openmath.models.stop_tokens import StopTokens

Format = Literal["same", "hf", "megatron"]
_MAY_DIFFER = frozenset(
    {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache", "attention_bias"}
    | {"initializer_range", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id"}
)
"""Keys of config.json that change neither the function of the weights nor the meaning of a token."""
_APART = frozenset({"file", "raw", "notes", "rope", "initializer_range", "attention_dropout"})
_MERGE = "checkpoints.merge"
log = logging.getLogger(__name__)


def average(
    sources: Sequence[str | Path],
    dst: str | Path,
    *,
    weights: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
    count: int | None = None,
    format: Format = "same",
    into_existing: bool = False,
) -> Path:
    """Write the weighted mean of checkpoints (Hugging Face or Megatron), in the dtype and format of the first.

    ``steps`` or ``count``: the sources are folders of several steps (a training's output); take these steps, or
    ``count`` equally spaced ones that end with the last (the recipe's 4). ``weights``: equal when not given; they are
    divided by their sum, with a warning where that is not 1. Megatron is written as ``torch_dist``.
    """
    if steps is not None or count is not None:
        sources = [folder for source in sources for folder in select_steps(source, steps, count)]
    if not sources:
        raise UserError("nothing to average", remedy="name at least one checkpoint")
    opened = _open_all(sources)
    shares = _shares(weights, len(opened))
    settings = {"weights": shares, "steps": [source.step for source in opened]}
    tensors = _merged("linear", opened, shares)
    return _write(dst, tensors, opened, "checkpoints.average", settings, format, into_existing)


def merge(
    method: Method,
    sources: Sequence[str | Path],
    dst: str | Path,
    *,
    weights: Sequence[float] | None = None,
    base: str | Path | None = None,
    density: float = 0.5,
    seed: int = 0,
    format: Format = "same",
    into_existing: bool = False,
) -> Path:
    """Merge models into ``dst``; the methods are explained in :mod:`~nemo_openmath.checkpoints.merge.arithmetic`.

    ``base``: the model that all were trained from, for task_arithmetic, ties and dare. ``density``: the part of each
    difference that ties and dare keep. ``weights``: equal when not given; 1 each for the methods with a base.
    """
    plan = _plan(method, sources, weights, base, density, seed)
    tensors = _merged(method, plan.opened, plan.shares, density, seed)
    return _write(dst, tensors, plan.opened, _MERGE, plan.settings, format, into_existing)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a merge is made of: ``opened`` ends with the base, ``settings`` go into the lineage."""

    opened: list[Checkpoint]
    shares: list[float]
    settings: dict[str, Any]


def _plan(
    method: Method,
    sources: Sequence[str | Path],
    weights: Sequence[float] | None,
    base: str | Path | None,
    density: float,
    seed: int,
) -> _Plan:
    if method not in get_args(Method):
        raise UserError(f"method {method!r}", remedy=f"use one of {', '.join(get_args(Method))}")
    if (base is not None) != (method in NEEDS_BASE):
        remedy = "name the model that all were trained from" if base is None else "leave the base out"
        raise UserError(f"{method} {'needs a base' if base is None else 'has no base'}", remedy=remedy)
    if not sources:
        raise UserError("nothing to merge", remedy="name the models")
    if method == "slerp" and len(sources) != 2:
        raise UserError(f"slerp merges two models, not {len(sources)}", remedy="use linear for more")
    if not 0.0 < density <= 1.0:
        raise UserError(f"density {density} is not in (0, 1]", remedy="0.5 keeps half of each difference")
    opened = _open_all([*sources, *([] if base is None else [base])])
    count = len(sources)
    if method in NEEDS_BASE:
        shares = [1.0] * count if weights is None else _counted(weights, count)
    else:
        shares = _shares(weights, count)
    if method == "slerp" and min(shares) < 0:
        raise UserError(f"slerp with the weights {list(weights or ())}", remedy="give weights of 0 or more")
    settings: dict[str, Any] = {"method": method, "weights": shares}
    if method in ("ties", "dare"):
        settings |= {"density": density, "seed": seed}
    return _Plan(opened, shares, settings)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One merge of a sweep. ``existed``: an earlier run of the sweep had made it."""

    ratio: float
    path: Path
    existed: bool


def sweep(
    sources: Sequence[str | Path],
    folder: str | Path,
    ratios: Sequence[float],
    *,
    method: Method = "linear",
    base: str | Path | None = None,
    density: float = 0.5,
    seed: int = 0,
    format: Format = "same",
) -> Iterator[Candidate]:
    """Make candidates (1 - r) A + r B for every r of ``ratios``, each when it is asked for (paper, Table 10).

    A sweep that was killed goes on: a candidate that is there is kept where its lineage names these inputs (by their
    digests) and settings, and refused with a UserError where it does not.
    """
    if len(sources) != 2:
        raise UserError(f"a sweep is over two models, not {len(sources)}", remedy="name two")
    refuse_foreign_folder(Path(folder), "the folder of a sweep", ("ratio-*",))
    digests: dict[str, str] = {}  # of the inputs, which are read for it only where there is something to keep
    for ratio in ratios:
        target, weights = Path(folder) / f"ratio-{ratio:g}", [1 - ratio, ratio]
        existed = target.is_dir() and any(target.iterdir())
        if existed:
            plan = _plan(method, sources, weights, base, density, seed)
            digests = digests or {str(number): source.digest() for number, source in enumerate(plan.opened)}
            if reason := _unlike(target, plan, digests, format):
                remedy = "remove it, or choose another --output"
                raise UserError(f"exists already, and {reason}", file=target, remedy=remedy)
        else:
            merge(method, sources, target, weights=weights, base=base, density=density, seed=seed, format=format)
        yield Candidate(ratio, target, existed)


def _unlike(target: Path, plan: _Plan, digests: Mapping[str, str], format: Format) -> str | None:
    """Return why ``target`` is not what ``plan`` would write; None when it is. It is opened, so that damage shows."""
    try:
        record = Lineage.read(target)
    except (TypeError, ValueError):
        record = None
    if record is None or record.kind != _MERGE:
        return "is no merge"
    recorded = {name: entry.get("digest", "") for name, entry in record.inputs.items()}
    if not all(digest.startswith(BLAKE3) for digest in recorded.values()):
        return "was made by an earlier version"
    if recorded != digests:
        return "was made of other models"
    if record.config != plan.settings:
        return f"was made with {', '.join(f'{key} {value}' for key, value in record.config.items())}"
    existing, first = open_checkpoint(target), plan.opened[0]
    if (existing.kind == "hf") != (_chosen(first, format) == "hf"):
        return f"is a {existing.kind} checkpoint"
    expected = _stops(plan.opened).change(changed_config(first.config))
    if _without_dtype(existing.config) != _without_dtype(expected):
        return "has another config.json"
    return None


def _without_dtype(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}


def select_steps(root: str | Path, steps: Sequence[int] | None = None, count: int | None = None) -> list[Path]:
    """Return the folders of the named steps, or of ``count`` equally spaced ones, the last among them.

    They are ``step-*`` of ``root`` or ``root/checkpoints``, else Megatron-LM's ``iter_*``, else transformers'
    ``checkpoint-*``. Equally spaced is meant of the steps, not of the folders: saves for resuming lie among them, and
    more of them close to the end or to where a training was interrupted. Raises UserError where no folder is within a
    quarter of the spacing.
    """
    root = Path(root)
    folders: dict[int, Path] = {}
    for folder, pattern in ((root / "checkpoints", "step-"), (root, "step-"), (root, "iter_"), (root, "checkpoint-")):
        named = {path.name.removeprefix(pattern): path for path in folder.glob(f"{pattern}*") if path.is_dir()}
        folders = folders or {int(number): path for number, path in named.items() if number.isdigit()}
    have = ", ".join(map(str, sorted(folders))) or "none"
    if steps is not None:
        missing = [step for step in steps if step not in folders]
        if missing:
            raise UserError(f"no checkpoint of step {missing[0]}", file=root, remedy=f"there are: {have}")
        return [folders[step] for step in steps]
    wanted = len(folders) if count is None else count
    if not 0 < wanted <= len(folders):
        raise UserError(
            f"{wanted} checkpoints are wanted, there are {len(folders)} ({have})", file=root, remedy="lower count"
        )
    if count is None:
        return [folders[step] for step in sorted(folders)]
    last = max(folders)
    spaced = spaced_steps(last, wanted)
    chosen = [min(folders, key=lambda step: (abs(step - aim), -step)) for aim in spaced]
    for aim, step in zip(spaced, chosen, strict=True):
        if abs(step - aim) > last / (4 * wanted) or chosen.count(step) > 1:
            remedy = f"there are: {have}; train with checkpoints.average_k: {wanted}, or name the steps"
            raise UserError(f"no checkpoint near step {aim}, one of {wanted} equally spaced", file=root, remedy=remedy)
    return [folders[step] for step in chosen]


def _open_all(paths: Sequence[str | Path]) -> list[Checkpoint]:
    """Open checkpoints of one architecture, vocabulary and tensor set; else a UserError names the difference."""
    opened = [open_checkpoint(path) for path in paths]
    first, config = opened[0], _settings(opened[0])
    for other in opened[1:]:
        theirs = _settings(other)
        for key in sorted((config.keys() & theirs.keys()) - _MAY_DIFFER):
            if config[key] != theirs[key]:
                raise UserError(
                    f"{key} is {theirs[key]!r}, in {first.path} it is {config[key]!r}",
                    file=other.path,
                    remedy="combine only checkpoints of one model",
                )
        if mismatch := tokenizer_difference(other.model_files, first.model_files):
            problem = f"its tokenizer differs from that of {first.path}: {mismatch}"
            raise UserError(problem, file=other.path, remedy="combine only checkpoints of one tokenizer")
        difference = first.tensors.keys() ^ other.tensors.keys()
        if difference:
            name = min(difference)
            where = first.path if name in first.tensors else other.path
            raise UserError(
                f"only {where} holds {name}", file=other.path, remedy="combine only checkpoints of one model"
            )
        for name, tensor in first.tensors.items():
            if tensor.shape != (shape := other.tensors[name].shape):
                raise UserError(f"{name} has shape {shape}, in {first.path} {tensor.shape}", file=other.path)
    return opened


def _settings(source: Checkpoint) -> dict[str, Any]:
    """Return what must be the same in models that are combined.

    Of a model that we know, this is all that its function depends on, defaults included; of others, config.json with
    RoPE in one form, whichever of the three it was written in.
    """
    config = changed_config(source.config)
    if config.get("model_type") in tuple(ARCHITECTURES):
        described = describe(source.model_files, quantized=True)
        scaling = {"rope_type": described.rope.kind, **described.rope.settings}
        same = {field.name: getattr(described, field.name) for field in fields(described) if field.name not in _APART}
        return same | {"rope_theta": described.theta, "rope_scaling": scaling}
    rope = config.pop("rope_parameters", None) or {}
    config.pop("rope_scaling", None)
    return config | {f"rope {key}": value for key, value in rope.items() if key != "rope_theta"}


def _counted(weights: Sequence[float], count: int) -> list[float]:
    if len(weights) != count:
        raise UserError(f"{len(weights)} weights for {count} models", remedy="give one weight per model")
    if not all(math.isfinite(weight) for weight in weights):
        raise UserError(f"the weights {list(weights)} are not all finite", remedy="give numbers such as 0.3 0.7")
    return [float(weight) for weight in weights]


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights divided by their sum."""
    shares = _counted([1.0 / count] * count if weights is None else weights, count)
    total = sum(shares)
    if not math.isfinite(total) or abs(total) < 1e-9:
        raise UserError(f"the weights sum to {total}", remedy="give weights with a positive sum")
    if abs(total - 1.0) > 1e-6:
        log.warning("the weights sum to %g; they are divided by it", total)
        return [share / total for share in shares]
    return shares


def _merged(
    method: Method, opened: Sequence[Checkpoint], weights: Sequence[float], density: float = 1.0, seed: int = 0
) -> dict[str, LazyTensor]:
    return {
        name: merged(method, name, [source.tensors[name] for source in opened], weights, density, seed)
        for name in opened[0].tensors
    }


def _write(
    dst: str | Path,
    tensors: Mapping[str, LazyTensor],
    sources: Sequence[Checkpoint],
    kind: str,
    settings: dict[str, Any],
    format: Format,
    into_existing: bool,
) -> Path:
    first, stops = sources[0], _stops(sources)
    with building(Path(dst), into_existing=into_existing) as folder:
        written: Kind = "hf" if _chosen(first, format) == "hf" else "torch_dist"
        write_checkpoint(folder, written, tensors, first, stops=stops)
        lineage(kind, {str(number): source for number, source in enumerate(sources)}, **settings).write(folder)
    return Path(dst)


def _stops(sources: Sequence[Checkpoint]) -> StopTokens:
    """Where texts of a model made of ``sources`` end: as those of any of them, in the first one's order."""
    first, *others = (StopTokens.of(source.model_files) for source in sources)
    return first.with_others(others)


def _chosen(first: Checkpoint, format: Format) -> str:
    """The format to write."""
    return ("hf" if first.kind == "hf" else "megatron") if format == "same" else format

"""What a stage has made: its manifest, a line about it, or the error that it made nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.merging import count_records
from nemo_openmath.core.records import Manifest, read_drops
from nemo_openmath.core.records.failed import FAILED, FailedTally, allowance, num_may_fail
from nemo_openmath.core.records.lineage import versions
from nemo_openmath.core.records.manifest import DIVIDED, TALLY
from nemo_openmath.core.records.store import count_lines, folder_sums, partition_files
from nemo_openmath.core.stage import CONTROLS, StageContext, UnitStage
from nemo_openmath.evaluation.controls import METRIC, measured, warnings
from nemo_openmath.evaluation.reports.formats import count_text, made_text
from nemo_openmath.grading.majority import majority
from nemo_openmath.recipe.stage_entries import StageEntry
from nemo_openmath.recipe.status import file_sizes
from nemo_openmath.synthesis.controls.plant import ControlledStage

_SHOWN = 3  # reasons for drops in a line
_FEW_UNITS = 10  # of which a half says nothing


def make_manifest(
    entry: StageEntry, fingerprint: str, inputs: dict[str, str], context: StageContext, seconds: float
) -> Manifest:
    """Count what lies in the folder of a stage that has run. ``inputs``: name -> digest."""
    folder = context.output
    sums, failed = folder_sums(folder), FailedTally.read(folder)
    drops = Counter(sums.drops)
    drops.update(failed.reasons)
    drops.update(context.metrics.pop("dropped", {}))  # of stages that do not keep records
    counts = {
        "units": sums.units + failed.total,
        **count_records(folder, majority, entry.stage.record),
        "drops": drops.total(),
        **({FAILED: failed.total} if failed.total else {}),
    }
    of_records: dict[str, Any] = {TALLY: dict(sums.tally)} if sums.tally else {}
    if (folder / CONTROLS).is_dir() and isinstance(entry.stage, UnitStage):
        of_records[METRIC] = measured(folder, entry.stage.control_classes)
    if context.partitions > 1 and sums.aligned and entry.stage.makes == "records":
        of_records[DIVIDED] = True
    return Manifest(
        stage=entry.stage.kind,
        fingerprint=fingerprint,
        digest=entry.stage.digest(folder),
        counts=counts,
        drops=dict(drops.most_common()),
        config=entry.stage.settings(),
        inputs=inputs,
        versions=versions(),
        seconds=round(seconds, 2),
        metrics={**context.metrics, **of_records, "seed": entry.seed, "files": file_sizes(folder)},
    )


def refuse_failures(entry: StageEntry, context: StageContext) -> None:
    """Raise Incomplete where more units of a stage have failed than may, of those of all jobs of an array."""
    failed = FailedTally.read(context.output)
    units = folder_sums(context.output).units + failed.total
    if isinstance(entry.stage, UnitStage) and failed.total > num_may_fail(entry.failed_items, units):
        files = context.output / "failed-*.jsonl"
        raise failed.error(entry.name, entry.stage.retries + 1, allowance(entry.failed_items, units), files)


def describe_shard(context: StageContext) -> str:
    """Return a line about a job of an array that was not the last one to end."""
    text = f"shard {context.shard} of {context.shards} done"
    failed = sum(
        count_lines(partition_files(context.output, number, context.partitions)["failed"])
        for number in context.part_numbers()
    )
    return text + (f"; {count_text(failed, 'unit')} failed, which the last shard judges" if failed else "")


def describe_outcome(manifest: Manifest) -> str:
    """Return a line about what was made, merged, decided and dropped, and how long it took."""
    counts = manifest.counts
    text = made_text(manifest)
    if merged := counts.get("merged"):
        text += f", {count_text(merged, 'duplicate')} merged"
    if disagreeing := counts.get("disagreeing"):
        text += f", {disagreeing} given different answers ({counts['undecided']} without a majority)"
    if counts["drops"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in list(manifest.drops.items())[:_SHOWN])
        text += f", dropped {counts['drops']} ({reasons}{', ...' if len(manifest.drops) > _SHOWN else ''})"
    return f"{text}, {manifest.seconds:.1f} s"


def control_warnings(entry: StageEntry, manifest: Manifest) -> list[str]:
    """Return a sentence for each measure of a stage by its controls that is below the recipe's bound."""
    if METRIC not in manifest.metrics or not isinstance(entry.stage, ControlledStage):
        return []
    return warnings(entry.name, manifest.metrics[METRIC], entry.stage.config.control_bound)


def unread_replies(entry: StageEntry, manifest: Manifest) -> list[str]:
    """Return a sentence where more than half of what a model was asked about was dropped for one reason that is about
    the form of the reply: prompt, template or length do not fit the model."""
    units = manifest.counts.get("units", 0)
    if not entry.stage.engines() or units < _FEW_UNITS:
        return []
    return [
        f"{entry.name}: {count:,} of {units:,} units were dropped for one reason, {reason!r}; is it the model that the "
        "prompt is for, and do max_tokens and its chat template fit? see samples.html"
        for reason, count in manifest.drops.items()
        if "reply" in reason and 2 * count > units
    ]


def made_nothing(
    entry: StageEntry, manifest: Manifest, folder: Path, reads: Sequence[str], *, may_allow: bool
) -> UserError | None:
    """Return the error of a stage that left nothing, with the reasons; None where it left something.

    ``reads``: the stages that it reads. ``may_allow``: whether the file could say ``allow_empty``.
    """
    untried = manifest.metrics.get("untried", 0)
    if entry.stage.makes == "records":
        remaining = manifest.counts["records"] - untried
    else:
        remaining = manifest.metrics.get("samples")  # None: a stage that counts none has made what it makes
    if remaining != 0:
        return None
    remedy = f"see {folder}{os.sep}drops-*.jsonl and mend what feeds it"
    if may_allow:
        remedy += ", or write allow_empty: true in this stage where that is meant"
    if untried:
        example = manifest.metrics.get("untried_example", "see `finish` in its records")
        return entry.error(f"made nothing: none of {untried:,} could be tried ({example})", remedy)
    if not manifest.drops:
        source = ", ".join(reads) or "what it reads"
        return entry.error(f"made nothing: nothing to work on is in {source}", remedy)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in list(manifest.drops.items())[:_SHOWN])
    reasons += ", ..." if len(manifest.drops) > _SHOWN else ""
    first = next(iter(manifest.drops))
    example = next((d.detail for _, d in read_drops(folder) if d.reason == first and d.detail), "")
    shown = f" (such as: {' '.join(example.split())[:120]})" if example else ""
    return entry.error(f"made nothing; dropped: {reasons}{shown}", remedy)

"""The card of an exported dataset (README.md), written from the lineage of the run that made it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.data.records.published import KAGGLE, UNATTRIBUTED, PublishedFiles
from nemo_openmath.recipe.lineage.run_stages import RunStage, RunStages
from nemo_openmath.recipe.problem_report import stage_balance
from nemo_openmath.recipe.teacher import Teacher
from nemo_openmath.synthesis.problems.answers import ANOTHERS

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
_LARGEST = "100M<n<1B"
_COLUMNS = {
    "problem": "the problem",
    "generated_solution": "the solution, as the model wrote it and the sandbox answered",
    "expected_answer": "its answer; null where none is known",
    "problem_type": "where the answer is from: `has_answer_extracted`, `no_answer_extracted` or `converted_proof`",
    "problem_source": "the forum, or file, that it is from",
    "generation_model": "the model that wrote the solution",
    "pass_rate_72b_tir": "share of solutions that were right, as a text; `n/a` where it was not measured",
    "inference_mode": "how the solution was made: `cot`, `tir` or `genselect`",
    KAGGLE: "as the data that it was read from says; null where that says nothing",
    UNATTRIBUTED: "whether nothing says that `expected_answer` is to this problem, not to another one of its post",
}
_MAKE_SOLUTIONS = ("rollout.generate", "solutions.read_generations")
_LEFT_OUT = ("templates", "engine", "second_engine", "second_share", "second_server")


@dataclass(frozen=True, slots=True)
class CardSettings:
    """What the lineage does not know."""

    name: str
    """The heading."""
    licence: str | None = None
    """An identifier of the hub, such as cc-by-4.0, or other; None: none is stated."""
    language: tuple[str, ...] = ()
    """Codes such as en."""

    def __post_init__(self) -> None:
        if self.licence is not None and not _LICENCE.fullmatch(self.licence):
            raise UserError(
                f"licence {self.licence!r} is no identifier of the hub", remedy="write such as cc-by-4.0, or other"
            )


def dataset_card(
    stages: RunStages, stage: RunStage, written: PublishedFiles, settings: CardSettings, teacher: Teacher | None = None
) -> str:
    """Return the card: front matter that the hub reads, then what the lineage of ``stage`` says. ``teacher``: the
    recipe's, where the recipe is still there."""
    lineage = _lineage(stages, stage)
    parts = [
        f"# {_plain(settings.name)}",
        _summary(stage, written),
        _columns(written),
        *_funnel(lineage),
        *_asked(lineage, teacher),
        *_benchmarks(stages, lineage),
        *_answers(lineage),
        *_unattributed(lineage),
        *_of_another(lineage),
        *_pass_rate(stages, lineage, teacher),
        *_measured(stages, lineage),
        _licence(settings),
        _limits(lineage, teacher),
    ]
    return f"---\n{_front_matter(written, settings)}---\n\n" + "\n\n".join(parts) + "\n"


def _front_matter(written: PublishedFiles, settings: CardSettings) -> str:
    size = next((name for bound, name in _SIZES if written.rows < bound), _LARGEST)
    matter: dict[str, Any] = {"pretty_name": _one_line(settings.name)}
    if settings.licence is not None:
        matter["license"] = settings.licence
    if settings.language:
        matter["language"] = list(settings.language)
    matter |= {
        "task_categories": ["text-generation"],
        "tags": ["math", "reasoning"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
        "dataset_info": {
            "features": [
                {"name": name, "dtype": "bool" if name in (KAGGLE, UNATTRIBUTED) else "string"}
                for name in written.columns
            ],
            "splits": [{"name": "train", "num_bytes": written.arrow_bytes, "num_examples": written.rows}],
            "download_size": sum(file.stat().st_size for file in written.files),
            "dataset_size": written.arrow_bytes,
        },
    }
    return yaml.safe_dump(matter, sort_keys=False, allow_unicode=True, width=1000)


def _lineage(stages: RunStages, stage: RunStage) -> list[RunStage]:
    """Return a stage and all that it was made from, in the order of the run."""
    behind, todo = {stage.folder}, [stage]
    while todo:
        for before in stages.before(todo.pop()):
            if before.folder not in behind:
                behind.add(before.folder)
                todo.append(before)
    return [other for other in stages if other.folder in behind]


def _summary(stage: RunStage, written: PublishedFiles) -> str:
    what = "solutions" if "generated_solution" in written.columns else "problems"
    lines = [
        f"{written.rows:,} {what}, in the order of their ids, made by NeMo-OpenMath with the recipe of "
        f"[arXiv 2504.16891](https://arxiv.org/abs/2504.16891) (stage `{stage.name}`, digest `{_digest(stage)}`).",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        'dataset = load_dataset("path/to/this/folder", split="train")',
        "```",
    ]
    return "\n".join(lines)


def _columns(written: PublishedFiles) -> str:
    rows = [(f"`{name}`", _COLUMNS[name]) for name in written.columns]
    types = [(f"`{name}`" if name else "not known", f"{count:,}") for name, count in written.types.items()]
    return "\n\n".join(["## Columns", _table(("column", "what it is"), rows), _table(("problem_type", "rows"), types)])


def _funnel(lineage: Sequence[RunStage]) -> Iterator[str]:
    rows, drops = [], []
    for stage in lineage:
        if stage.manifest is None or not stage.kind.startswith("problems."):
            continue
        of = stage_balance(stage.name, stage.manifest)
        further, dropped, merged = (f"{n:,}" if n else "" for n in (of.further, of.dropped, of.merged))
        rows.append((f"`{of.stage}` ({of.kind})", f"{of.read:,}", further, dropped, merged, f"{of.kept:,}"))
        ordered = sorted(of.drops.items(), key=lambda item: (-item[1], item[0]))
        drops += [(f"`{of.stage}`", reason, f"{count:,}") for reason, count in ordered]
    if rows:
        yield "## How it was made"
        yield (
            "What a stage read, and what its units left beyond the first thing each, is what it dropped, merged with "
            "an equal record, and kept."
        )
        yield _table(("stage", "read", "further", "dropped", "merged", "kept"), rows)
    if drops:
        yield _table(("stage", "why something was dropped", "number"), drops)


def _asked(lineage: Sequence[RunStage], teacher: Teacher | None) -> Iterator[str]:
    rows, settings = [], []
    for stage in lineage:
        engine = stage.settings.get("engine")
        if stage.manifest is None or not isinstance(engine, str):
            continue
        model = _model(stage, engine, teacher)
        templates = stage.settings.get("templates") or {}
        for asked in (model, *_second_model(stage, teacher)):
            rows += [(f"`{stage.name}`", asked, f"`{name}`", f"`{digest}`") for name, digest in templates.items()]
            rows += [] if templates else [(f"`{stage.name}`", asked, "", "")]
        told = {name: value for name, value in stage.settings.items() if name not in _LEFT_OUT and value is not None}
        settings.append((f"`{stage.name}`", ", ".join(f"{name}: {_value(value)}" for name, value in told.items())))
    if rows:
        yield "## Models and prompts"
        yield _table(("stage", "model", "prompt", "digest of the prompt"), rows)
        yield _table(("stage", "settings"), settings)


def _model(stage: RunStage, engine: str, teacher: Teacher | None) -> str:
    if engine == "teacher" and teacher is not None:
        return f"`{teacher.model}`"
    given = next((source for source in stage.inputs if source.name == engine), None)
    digest = ((given.digest if given is not None else None) or "").removeprefix("blake3:")
    return f"`{engine}`" + (f" (`{digest[:16]}`)" if re.fullmatch(r"[0-9a-f]+", digest) else "")


def _second_model(stage: RunStage, teacher: Teacher | None) -> Iterator[str]:
    """Yield the model that a stage asked about a part of its units, too. Where it is served is nobody's business."""
    second, share = stage.settings.get("second_engine"), stage.settings.get("second_share")
    if isinstance(second, str):
        of = f"{share:.3g} of the units" if isinstance(share, float | int) else "a part of the units"
        own = stage.settings.get("second_server") is not None
        yield (f"`{second}`" if own else _model(stage, second, teacher)) + f", too, about {of}; it changed no record"


def _benchmarks(stages: RunStages, lineage: Sequence[RunStage]) -> Iterator[str]:
    rows = []
    for stage in lineage:
        if stage.kind != "problems.decontaminate":
            continue
        read = [source for source in stage.inputs if source.port != "engine"]
        ports = {source.port for source in read}
        # without the recipe no port is known: the problems come first
        for source in [s for s in read if s.port == "benchmark"] if "benchmark" in ports else read[1:]:
            made = stages.at(source.path)
            number = made.manifest.counts.get("records") if made is not None and made.manifest is not None else None
            size = f"{number:,}" if number is not None else ""
            rows.append((f"`{stage.name}`", f"`{source.name}`", size, f"`{(source.digest or '')[:16]}`"))
    yield "## Decontamination"
    if not rows:
        yield "**The problems were compared with no benchmark.**"
        return
    yield "Problems that a model called the same as one of these were removed:"
    yield _table(("stage", "benchmark", "problems", "digest"), rows)


def _answers(lineage: Sequence[RunStage]) -> Iterator[str]:
    for stage in lineage:
        metrics = stage.manifest.metrics if stage.manifest is not None else {}
        if "wrong_answers_expected" in metrics:
            low, high = metrics["wrong_answers_low"], metrics["wrong_answers_high"]
            yield "## Wrong answers"
            yield (
                f"Stage `{stage.name}` estimates {metrics['wrong_answers_expected']:,} wrong answers "
                f"({low:,.0f} to {high:,.0f}) among those that it kept, by how often independent witnesses agree."
            )


def _unattributed(lineage: Sequence[RunStage]) -> Iterator[str]:
    for stage in lineage:
        number = stage.manifest.metrics.get(UNATTRIBUTED) if stage.manifest is not None else None
        if number:
            kept = stage.settings.get("unattributed", "keep") == "keep"  # what earlier versions did
            yield "## Answers that nothing attributes"
            yield (
                f"Of {number:,} problems of stage `{stage.name}` the post poses several problems, and nothing in the "
                "discussion says to which of them its answer belongs. "
                + (f"They have it all the same: see `{UNATTRIBUTED}`." if kept else "Their answers were taken away.")
            )


def _of_another(lineage: Sequence[RunStage]) -> Iterator[str]:
    for stage in lineage:
        number = stage.manifest.metrics.get(ANOTHERS) if stage.manifest is not None else None
        if number:
            yield "## Answers to other problems"
            yield (
                f"For {number:,} problems of stage `{stage.name}` the model gave, in all attempts, what the discussion "
                "says of another problem of the post. They went on without an answer."
            )


def _pass_rate(stages: RunStages, lineage: Sequence[RunStage], teacher: Teacher | None) -> Iterator[str]:
    for stage in lineage:
        if stage.kind == "solutions.hardness":
            makers = [s for s in _lineage(stages, stage) if s.kind in _MAKE_SOLUTIONS]
            by = ", ".join(f"`{s.name}`: {_model(s, str(s.settings.get('engine', 'files')), teacher)}" for s in makers)
            yield "## Pass rate"
            yield (
                f"`pass_rate_72b_tir` keeps the published name. Here it was measured by stage `{stage.name}` from the "
                f"solutions of {by or 'no stage'}."
            )


def _measured(stages: RunStages, lineage: Sequence[RunStage]) -> Iterator[str]:
    """Yield precision and recall against labelled threads, where the run has measured them on these stages."""
    folders = {stage.folder for stage in lineage}
    for stage in stages:
        rows = stage.manifest.metrics.get("truth") if stage.manifest is not None else None
        reads = {source.path for source in stage.inputs if source.port != "truth"}
        if rows and reads <= folders:
            yield "## Precision and recall"
            yield f"Against labelled threads (stage `{stage.name}`), with 95% intervals:"
            yield _table(
                ("stage", "of", "precision", "recall"),
                [(row["stage"], row["what"], _share(row, "precision"), _share(row, "recall")) for row in rows],
            )


def _share(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return ""
    return f"{row[name]:.1%} ({row[f'{name}_low']:.1%} to {row[f'{name}_high']:.1%})"


def _licence(settings: CardSettings) -> str:
    stated = "No licence is stated yet: whoever publishes this dataset states one."
    if settings.licence is not None:
        stated = f"`{settings.licence}`, as whoever exported this dataset stated."
    return f"## Licence\n\n{stated} The problems are of people who wrote them elsewhere, under the terms of that place."


def _limits(lineage: Sequence[RunStage], teacher: Teacher | None) -> str:
    limits = [
        "Models extracted, classified, converted and compared these problems, and nobody read them all: some are no "
        "problems, some are broken, some answers are wrong.",
        "An answer is what the replies of a thread say, what most solutions say, or what a conversion says. It was "
        "proven by nobody.",
        "Decontamination finds what is similar enough to be shown to a model, in the benchmarks that are named.",
    ]
    if teacher is not None and teacher.is_stand_in and any(s.settings.get("engine") == "teacher" for s in lineage):
        limits.append(teacher.program.disclosure)
    kinds = stage_kinds()
    limits += dict.fromkeys(
        kinds[stage.kind].disclosure for stage in lineage if stage.kind in kinds and kinds[stage.kind].disclosure
    )
    return "## Limits\n\n" + "\n".join(f"- {text}" for text in limits)


def _digest(stage: RunStage) -> str:
    return stage.manifest.digest[:16] if stage.manifest is not None else ""


def _value(value: Any) -> str:
    return _plain(", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Return a text as one line that is no markup of a table or of HTML."""
    return html.escape(_one_line(text), quote=False).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""What recipes and other files can say, for a reader: as text (``openmath recipe stages KIND``) and as Markdown pages
(``openmath recipe reference DIR``). All of it is read from the classes, so that it cannot differ from them.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from nemo_openmath.core.build import nearest
from nemo_openmath.core.errors import UserError, of_the_system
from nemo_openmath.core.outputs import refuse_foreign_folder
from nemo_openmath.core.stage import Stage, stage_kinds
from nemo_openmath.launch import cluster
from nemo_openmath.launch.model_server import ModelServer
from nemo_openmath.recipe import file, generate
from nemo_openmath.recipe.drop_reasons import drop_reasons
from nemo_openmath.recipe.iteration_settings import IterationsSettings
from nemo_openmath.recipe.registry import STAGES
from nemo_openmath.recipe.setting_docs import Setting, first_sentence, one_line, settings
from nemo_openmath.recipe.stage_entries import noun
from nemo_openmath.recipe.teacher import settings_types
from nemo_openmath.training import config as training

STAGE_KEYS = (
    Setting("run", "kind of stage", None, "What the stage does: a kind of the page about stages."),
    Setting(
        "from",
        "name, path, list of these, or these by input",
        "none",
        "What it reads: other stages by their names, or files and folders, whose paths contain a /. A stage with one "
        "needed input takes a name or a list; one with several takes them by the input's name.",
    ),
    Setting("seed", "whole number", "the recipe's", "The seed of this stage."),
    Setting(
        "allow_empty", "true or false", "false", "Go on where the stage leaves nothing. Otherwise the run ends there."
    ),
    Setting(
        "failed_items",
        "number, 0 or more, less than 1",
        "the recipe's",
        "The share of this stage's items that may fail after all attempts. Only of stages whose items fail alone.",
    ),
)
"""What every stage of a recipe may say beside the settings of its kind."""


def stage_class(kind: str) -> type[Stage]:
    """Return the class of a kind of stage. Raises UserError with the nearest kind where there is none of this name."""
    kinds = stage_kinds()
    if kind not in kinds:
        raise UserError(f"no kind of stage {kind!r}", remedy=nearest(kind, list(kinds)))
    return kinds[kind]


def describe(kind: str) -> str:
    """Return a text about a kind of stage: what it does, takes, makes and drops, an entry for a recipe, its settings.

    Raises UserError with the nearest kind where there is none of this name.
    """
    cls = stage_class(kind)
    lines = [kind, "", *textwrap.wrap(one_line(cls.__doc__).replace("``", "`"), 100), ""]
    lines += ["inputs (from:)" if cls.ports else "inputs: none"]
    lines += [f"  {port.removesuffix('?')}: {text}{_optional(port)}" for port, text in cls.ports.items()]
    lines += ["makes", f"  {_product(cls)}", "", "in a recipe", f"  {_entry(cls)}"]
    if reasons := drop_reasons(cls):
        lines += ["", "drops, with these reasons", *(f"  {reason}" for reason in reasons)]
    for name, choices in cls.choices.items():
        lines += ["", f"what {name} may name"]
        lines += [
            textwrap.fill(
                f"{choice}: {one_line(text)}".replace("``", "`"), 98, initial_indent="  ", subsequent_indent="      "
            )
            for choice, text in choices.items()
        ]
    lines += ["", "settings"]
    for setting in settings(cls.Config):
        default = "required" if setting.default is None else f"default {setting.default}"
        lines.append(f"  {setting.name}: {setting.type}; {default}")
        lines += textwrap.wrap(
            setting.meaning.replace("``", "`"), 94, initial_indent="      ", subsequent_indent="      "
        )
    return "\n".join(lines)


def write_reference(folder: Path) -> list[Path]:
    """Write every page into ``folder`` and return their paths. Raises UserError where they cannot be written."""
    pages = reference_pages()
    refuse_foreign_folder(folder, "a folder of these pages alone", (), [folder / name for name in pages])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise of_the_system(error, folder) or error from error
    return [folder / name for name in pages]


def reference_pages() -> dict[str, str]:
    """Return the Markdown of every page by its file name."""
    job, solutions = training.TrainingJob, generate.GenerateJob
    return {
        "stages.md": _stages_page(),
        "recipe-file.md": _page("The recipe file", file.__doc__, _recipe_tables()),
        "generate-file.md": _page("The file of `openmath generate`", generate.__doc__, _table(settings(solutions))),
        "training-job.md": _page("The training job", training.__doc__, _table(settings(job))),
        "cluster-file.md": _page("The cluster file", cluster.__doc__, _cluster_tables()),
    }


def settings_table(config: type) -> str:
    """Return a Markdown table of the settings of a dataclass."""
    return "\n".join(_table(settings(config, types=settings_types())))


def _stages_page() -> str:
    """Every kind of stage, in the order of the recipe; those that others add (the demo) come last."""
    order = {stage: number for number, stage in enumerate(STAGES)}
    kinds = sorted(stage_kinds().values(), key=lambda stage: order.get(stage, len(order)))
    lines = [
        "# Stages",
        "",
        "A stage reads what earlier stages made and writes one folder. `openmath recipe stages KIND` prints the same",
        "in a terminal.",
        "",
        "| Kind | What it does |",
        "|---|---|",
        *(f"| [`{s.kind}`](#{_anchor(s.kind)}) | {_cell(first_sentence(s.__doc__))} |" for s in kinds),
        "",
        "What every stage may say:",
        "",
        *_table(STAGE_KEYS),
    ]
    for stage in kinds:
        lines += ["", *_stage_section(stage)]
    return "\n".join(lines) + "\n"


def _stage_section(cls: type[Stage]) -> Iterator[str]:
    yield from [f"## `{cls.kind}` {{ #{_anchor(cls.kind)} }}", "", _markdown(cls.__doc__), ""]
    yield from ["```yaml", _entry(cls), "```", ""]
    if cls.ports:
        yield from ["| Input | What it holds | Made by a stage that makes |", "|---|---|---|"]
        for port, text in cls.ports.items():
            name = port.removesuffix("?")
            takes = cls.takes.get(name)
            yield f"| `{name}`{_optional(port)} | {_cell(text)} | {_cell(noun(takes)) if takes else 'files'} |"
        yield ""
    yield from [f"Makes: {_product(cls)}.", ""]
    if reasons := drop_reasons(cls):
        yield from ["Drops, counted by reason: " + ", ".join(f"`{reason}`" for reason in reasons) + ".", ""]
    yield from _table(settings(cls.Config))
    for name, choices in cls.choices.items():
        yield from ["", f"What `{name}` may name:", "", f"| `{name}` | What it does |", "|---|---|"]
        yield from (f"| `{choice}` | {_cell(one_line(text))} |" for choice, text in choices.items())


def _recipe_tables() -> Iterator[str]:
    yield from _table(settings(file.RecipeSettings, types=settings_types()))
    yield from ["", "## Iterations", "", "What `iterations` may say beside its stages:", ""]
    yield from _table(settings(IterationsSettings))
    yield from ["", "## A stage", "", "Beside the settings of [its kind](stages.md):", ""]
    yield from _table(STAGE_KEYS)


def _cluster_tables() -> Iterator[str]:
    yield from _table(settings(cluster.Cluster))
    yield from ["", "## Resources of a job", "", "What `default`, `kinds.KIND` and `stages.NAME` may say:", ""]
    yield from _table(settings(cluster.Resources))
    yield from ["", "## Servers", "", "What `servers.MODEL` may say:", ""]
    yield from _table(settings(ModelServer))


def _page(title: str, text: str | None, tables: Iterable[str]) -> str:
    return "\n".join([f"# {title}", "", _markdown(text), "", "## Settings", "", *tables]) + "\n"


def _table(rows: Iterable[Setting]) -> Iterator[str]:
    """A Markdown table of settings; its last column is there where a number has its place in the paper."""
    rows = list(rows)
    if not rows:
        yield "It has no settings."
        return
    paper = any(row.paper for row in rows)
    yield "| Setting | Type | Default | Meaning |" + (" Paper |" if paper else "")
    yield "|---|---|---|---|" + ("---|" if paper else "")
    for row in rows:
        default = "required" if row.default is None else f"`{row.default}`" if row.default else ""
        cells = [f"`{row.name}`", _cell(row.type), _cell(default), _cell(row.plain_meaning)]
        yield f"| {' | '.join([*cells, _cell(row.paper)] if paper else cells)} |"


def _markdown(text: str | None) -> str:
    """A docstring as Markdown: roles and double backticks are none, and code blocks are indented already."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.cleandoc(text or "")).replace("``", "`")


def _cell(text: str) -> str:
    """A text as the cell of a table."""
    return _markdown(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _anchor(kind: str) -> str:
    return kind.replace(".", "-").replace("_", "-")


def _optional(port: str) -> str:
    return " (may be left out)" if port.endswith("?") else ""


def _product(cls: type[Stage]) -> str:
    return f"records ({cls.record.__name__})" if cls.record is not None else cls.makes


def _entry(cls: type[Stage]) -> str:
    """A stage of this kind as a recipe writes it, with what has no default."""
    ports = {p.removesuffix("?"): p for p in cls.ports}
    needed = [name for name, declared in ports.items() if name == declared] or list(ports)
    inputs = {1: ", from: STAGE"}.get(len(needed), f", from: {{{', '.join(f'{n}: STAGE' for n in needed)}}}")
    required = [f", {s.name}: ..." for s in settings(cls.Config) if s.default is None]
    return f"name: {{run: {cls.kind}{inputs if needed else ''}{''.join(required)}}}"

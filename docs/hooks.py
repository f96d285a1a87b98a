"""Fills the reference pages from the classes and the parser while the site is built, so that they cannot differ.

A line of a page that is only one of these comments is replaced:

    <!-- generated: stages -->                                    every kind of stage
    <!-- generated: settings nemo_openmath.launch.cluster Resources --> a table of the settings of a class
    <!-- generated: commands -->                                  the help of every command
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the clone that is built, not an installed package

from nemo_openmath.cli.main import build_parser
from nemo_openmath.cli.registry import register_all
from nemo_openmath.core.stage import Stage, stage_kinds
from nemo_openmath.recipe.registry import STAGES
from nemo_openmath.recipe.stage_help import Setting, settings

_MARK = re.compile(r"^<!-- generated: (\w+)((?: [\w.]+)*) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    return filled(markdown)


def filled(markdown: str) -> str:
    """The text with its comments replaced."""
    return _MARK.sub(lambda mark: _PARTS[mark[1]](*mark[2].split()), markdown)


def stages() -> str:
    """Every kind of stage, in the order of the recipe; those of the demo last."""
    register_all()
    demo = (cls for cls in stage_kinds().values() if cls not in STAGES)
    return "\n".join(_stage(cls) for cls in (*STAGES, *demo))


def _stage(cls: type[Stage]) -> str:
    lines = [f"## {cls.kind}", "", " ".join((cls.__doc__ or "").split()), ""]
    lines += [f"Made by `{cls.__module__}.{cls.__name__}`, version {cls.version}.", ""]
    for port, text in cls.ports.items():
        optional = " May be left out." if port.endswith("?") else ""
        lines.append(f"- Input `{port.removesuffix('?')}`: {_code(text)}.{optional}")
    if cls.record is not None:
        lines.append(f"- Makes records of the type `{cls.record.__name__}`.")
    else:
        lines.append(f"- Makes: {cls.makes}.")
    return "\n".join([*lines, "", table(cls.Config), ""])


def settings_of(module: str, name: str) -> str:
    return table(getattr(importlib.import_module(module), name))


def table(config: type) -> str:
    """A table of all settings of a class, those of nested classes below their dotted names."""
    rows = [f"| `{s.name}` | {_cell(s.type)} | {_default(s)} | {_cell(s.meaning)} |" for s in settings(config)]
    if not rows:
        return "It has no settings."
    return "\n".join(["| setting | type | default | meaning |", "|---|---|---|---|", *rows])


def _default(setting: Setting) -> str:
    return "required" if setting.default is None else f"`{setting.default}`".replace("|", "\\|")


def _code(text: str) -> str:
    return text.replace("``", "`")


def _cell(text: str) -> str:
    """Text for a cell of a table: ``code`` becomes Markdown's, signs of HTML outside of code are shown as they are."""
    parts = _code(" ".join(text.split())).replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


def commands() -> str:
    """The help of every command, as it is printed."""
    os.environ["COLUMNS"] = "110"
    out = []
    for name, parser in _verbs(build_parser()):
        out += [f"## {name}", "", "```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(out)


def _verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(command, parser) of every verb that does something, in the order of ``openmath --help``."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below:
        yield parser.prog, parser
    for action in below:
        for child in action.choices.values():
            yield from _verbs(child)


_PARTS = {"stages": stages, "settings": settings_of, "commands": commands}

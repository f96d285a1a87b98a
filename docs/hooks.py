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
from nemo_openmath.recipe.reference import reference_pages, settings_table

_MARK = re.compile(r"^<!-- generated: (\w+)((?: [\w.]+)*) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    return filled(markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs with each page as HTML: roles of docstrings, such as :class:`Pack`, become code alone."""
    return re.sub(r":(?:class|func|meth|mod|attr|data):<code>~?", "<code>", html)


def filled(markdown: str) -> str:
    """The text with its comments replaced."""
    return _MARK.sub(lambda mark: _PARTS[mark[1]](*mark[2].split()), markdown)


def stages() -> str:
    """Every kind of stage, in the order of the recipe; those of the demo last."""
    register_all()
    return reference_pages()["stages.md"].partition("\n")[2]  # without its title: the page has its own


def settings_of(module: str, name: str, *others: str) -> str:
    """A table of the settings of a class, without its sections ``others``, which have tables of their own."""
    register_all()
    rows = settings_table(getattr(importlib.import_module(module), name)).splitlines()
    left_out = tuple(f"| `{section}." for section in others)
    return "\n".join(row for row in rows if not row.startswith(left_out))


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

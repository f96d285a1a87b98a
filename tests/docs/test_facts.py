"""What the pages say of the code is so: names, files, settings and fields are there."""

from __future__ import annotations

import dataclasses
import importlib.util
import pkgutil
import re

import pytest

from nemo_openmath.cli.common import EXAMPLES
from nemo_openmath.core.records import Generation, Group, Problem, Record, SftRow, Thread
from nemo_openmath.core.stage import stage_kinds
from tests.conftest import SmokeRun
from tests.docs.blocks import PAGES, TOP
from tests.docs.readers import IN_REPOSITORY, OF_THE_READER


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts(page: str) -> None:
    """What mkdocs puts in when it builds the site is there: a class that was renamed shows here."""
    spec = importlib.util.spec_from_file_location("hooks", TOP / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = hooks.filled((TOP / "docs" / page).read_text())
    assert "\n<!-- generated" not in text
    if page == "reference/stages.md":
        assert all(f"\n## `{kind}` " in text for kind in stage_kinds())
    if page == "reference/command-line.md":
        assert all(f"\n## openmath {verb}\n" in text for verb in EXAMPLES)


def test_every_file_of_a_run_is_explained(smoke_run: SmokeRun) -> None:
    page = (TOP / "docs/start/run-folder.md").read_text()
    words = set(re.findall(r"[\w.-]*[\w]", page))
    unknown: set[str] = set()
    for path in smoke_run.output.rglob("*"):
        if path.is_file() and path.parent.name not in ("model", "state", ".digests", ".progress", ".heartbeat"):
            shown = re.sub(r"\d{5}-of-\d{5}", "I-of-N", path.name)
            unknown |= {shown} - words
    assert not unknown, f"docs/start/run-folder.md does not explain {sorted(unknown)}"


@pytest.mark.parametrize("kind", [Thread, Problem, Generation, Group, SftRow])
def test_the_fields_of_records_are_those_of_the_page(kind: type[Record]) -> None:
    page = (TOP / "docs/reference/formats.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{kind.__name__}` |"))
    own = {field.name for field in dataclasses.fields(kind)} - {field.name for field in dataclasses.fields(Record)}
    assert set(re.findall(r"`(\w+)`", row)) == {kind.__name__, *own}


TO_MAKE = ("nemo_openmath/synthesis/problems/short.py",)
"""Files that a page tells its reader to make."""


@pytest.mark.parametrize("page", PAGES)
def test_what_the_prose_names_is_there(page: str) -> None:
    """Files of the repository (`tests/data`, `examples/*.yaml`) and modules (`nemo_openmath.grading`)."""
    prose = re.sub(r"^ *```.*?^ *```$", "", (TOP / "docs" / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    folders = "|".join(sorted(path.name for path in TOP.iterdir() if path.is_dir() and path.name in IN_REPOSITORY))
    files = re.findall(rf"`((?:{folders})/[^`\s:]+)[^`]*`", prose)
    gone = [
        file
        for file in files
        if not file.startswith((*TO_MAKE, *OF_THE_READER)) and not list(TOP.glob(file.rstrip("/")))
    ]
    gone += [module for module in re.findall(r"`(nemo_openmath(?:\.\w+)+)[^`]*`", prose) if not _is_there(module)]
    assert not gone, f"docs/{page} names what is not there: {gone}"


def _is_there(module: str) -> bool:
    try:
        pkgutil.resolve_name(module)
    except ModuleNotFoundError as error:
        return not str(error.name).startswith("nemo_openmath")  # it is there, and needs a package of an extra
    except AttributeError:
        return False
    return True

"""What the pages say of the code is so: names, files, settings and fields are there."""

from __future__ import annotations

import dataclasses
import importlib.util
import re

import pytest

from nemo_openmath.cli.common import EXAMPLES
from nemo_openmath.core.records import Generation, Group, Problem, Record, SftRow, Thread
from nemo_openmath.core.stage import stage_kinds
from tests.conftest import SmokeRun
from tests.docs.blocks import PAGES, TOP


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
        if path.is_file() and path.parent.name not in ("model", "state", ".digests"):
            shown = re.sub(r"\d{5}-of-\d{5}", "I-of-N", path.name)
            unknown |= {shown} - words
    assert not unknown, f"docs/start/run-folder.md does not explain {sorted(unknown)}"


@pytest.mark.parametrize("kind", [Thread, Problem, Generation, Group, SftRow])
def test_the_fields_of_records_are_those_of_the_page(kind: type[Record]) -> None:
    page = (TOP / "docs/reference/formats.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{kind.__name__}` |"))
    own = {field.name for field in dataclasses.fields(kind)} - {field.name for field in dataclasses.fields(Record)}
    assert set(re.findall(r"`(\w+)`", row)) == {kind.__name__, *own}

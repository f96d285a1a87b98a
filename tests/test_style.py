"""The style page, as far as a program can see it: one meaning a name, whole sentences, calls that read plainly."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import nemo_openmath

PACKAGE = Path(__file__).parents[1] / "nemo_openmath"
# A first sentence of a function that begins so continues the function's name, and is no sentence of its own.
CONTINUATIONS = {
    *(
        "Of",
        "By",
        "Until",
        "Those",
        "Its",
        "That",
        "Where",
        "Which",
        "Before",
        "After",
        "As",
        "With",
        "Without",
        "From",
    ),
    *("From", "To", "Into", "In", "At", "And", "Or", "But", "On", "For"),
}
EMPTY_NAMES = {"found", "said", "many"}  # they say nothing of what they hold


@cache
def trees() -> list[tuple[str, ast.Module]]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [(str(file.relative_to(PACKAGE)), ast.parse(file.read_text("utf-8"))) for file in files]


def nodes(*kinds: type[ast.AST]) -> list[tuple[str, ast.AST]]:
    return [(file, node) for file, tree in trees() for node in ast.walk(tree) if isinstance(node, kinds)]


def test_one_class_name_has_one_meaning() -> None:
    places = defaultdict(list)
    for file, node in nodes(ast.ClassDef):
        places[node.name].append(file)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_docstrings_are_sentences() -> None:
    wrong = []
    for file, node in nodes(ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text is None or node.name.startswith("_"):
            continue
        first = re.split(r"(?<=[.:!?])\s|\n\n", text, maxsplit=1)[0]
        continues = not isinstance(node, ast.ClassDef) and first.split()[0].strip(",;:") in CONTINUATIONS
        if continues or not re.search(r"[.:!?)]$", first):
            wrong.append(f"{file}:{node.lineno}: {node.name}: {first}")
    assert wrong == []


def test_calls_and_names_read_plainly() -> None:
    wrong = []
    for file, node in nodes(ast.Call, ast.Name):
        if isinstance(node, ast.Call) and any(
            isinstance(arg, ast.Starred) and isinstance(arg.value, ast.Tuple) for arg in node.args
        ):
            wrong.append(f"{file}:{node.lineno}: a tuple is unpacked in a call")
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in EMPTY_NAMES:
            wrong.append(f"{file}:{node.lineno}: a variable named {node.id}")
    assert wrong == []


def test_one_version() -> None:
    top = PACKAGE.parent
    assert f'version = "{nemo_openmath.__version__}"' in (top / "pyproject.toml").read_text()
    assert f"version: {nemo_openmath.__version__}\n" in (top / "CITATION.cff").read_text()
    assert f"## [{nemo_openmath.__version__}]" in (top / "CHANGELOG.md").read_text()

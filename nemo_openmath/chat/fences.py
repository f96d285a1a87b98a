"""Code in fences of Markdown, as models write it that were never shown our tags.

    model   So we count: ```python            model's own code, closed: run it
            print(6 * 7)
            ```
    tool    ```output                          put in by the loop
            42
            ```
    model   It is 42.

:func:`read_fences` reads what a model wrote since the last output and says what happens first: a program ends, an
output begins that the model makes up, or neither. It knows nothing of engines or sandboxes.

Fences are those of CommonMark (three or more backticks or tildes, closed by as many or more of the same alone on a
line), and what models write besides: any indentation, behind the mark of a list, behind prose where the language is
Python's, and an output fence in the midst of a program that they forgot to close.

A fence without a language is a program only where its content is Python that does something: it parses, it is more
than names, numbers and formulas, and the names that it uses are known. A fence of another language never is.
"""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from nemo_openmath.core.tags import CODE_END, CODE_START

PYTHON = frozenset(("python", "py", "python3", "py3", "ipython", "ipython3", "tool_code"))
OUTPUT = frozenset(("output", "outputs", "out", "stdout", "result", "results", "tool_output", "execution_output"))
_PLAIN = frozenset(("", "text", "txt", "plain", "plaintext", "console", "none", "bash", "shell", "sh"))
_LONGEST = 20_000  # characters of a fence without a language that is looked at as Python
_TRIES = 16  # lines of a fence that are tried as its end behind code; each costs a look at all of it
_LABEL_CHARS = 80  # of a line that says that an output follows, at its end

_OPENER = re.compile(
    r"(?P<lead>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?)(?P<fence>`{3,}(?!`)|~{3,}(?!~))[ \t]*(?P<info>.*)\Z"
)
_BEHIND_PROSE = re.compile(r"(?P<lead>[^`]*[\s:])(?P<fence>`{3,}(?!`))(?P<info>[^`]*)\Z")
_CLOSER = re.compile(r"[ \t]*(?P<fence>`{3,}|~{3,})\s*\Z")
_CLOSED_BEHIND_CODE = re.compile(r"(?P<code>[^`]*)(?P<fence>`{3,})\s*\Z")
_LANGUAGE = re.compile(r"\{?\s*\.?([\w+#-]*)")
_OUTPUT_BEGUN = re.compile(r"[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?:output|Output)\Z")
_LABEL = re.compile(
    r"\b(?:outputs?|prints?|printed|stdout|executing|execution|running|when run|results? of (?:the|this)"
    r" (?:code|program|script))\b[^\n]*:\W*\Z|\A\W*(?:outputs?|results?|stdout)\W*\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class FencedCall:
    """A program in a fence. ``start``: where in the text the fence begins; ``end``: behind its last line."""

    start: int
    end: int
    fence: str
    """The backticks or tildes that close it."""
    code: str
    """The program, without the indentation of its fence, blank lines around it and carriage returns."""


@dataclass(frozen=True, slots=True)
class FenceReading:
    """What happens first in a text: ``call`` is to be run, or an output that the model made up begins at ``invented``,
    or neither, and what the model wrote goes on. Both are there where an output begins within a program."""

    call: FencedCall | None = None
    invented: int | None = None
    open: bool = False
    """Whether a fence is open at the end."""


@dataclass(slots=True)
class _Open:
    """A fence that was opened. ``start``: where it begins; ``body``: where its content does."""

    start: int
    body: int
    fence: str
    language: str
    labelled: bool
    """The line in front says that an output follows, or an output stands right in front."""
    tries: int = 0
    """Lines that might have closed it behind code."""


class _Before:
    """What ran before a text, and what it printed. Each is read once, where a fence asks for it."""

    def __init__(self, ran: Sequence[str], outputs: Sequence[str]):
        self._ran, self._outputs = ran, outputs

    @cached_property
    def names(self) -> frozenset[str]:
        """The names that a program may use: Python's own, and those of the programs that ran."""
        trees = (tree for tree in map(_parse, self._ran) if tree is not None)
        return frozenset(dir(builtins)).union(*(bound | loaded for bound, loaded in map(_names, trees)))

    @cached_property
    def outputs(self) -> list[list[str]]:
        """The words of each output."""
        return [output.split() for output in self._outputs]


def read_fences(text: str, *, ended: bool, ran: Sequence[str] = (), outputs: Sequence[str] = ()) -> FenceReading:
    """Read what a model wrote since the last output.

    - ``ended``: the model's turn is over; else its last line may go on.
    - ``ran``: the programs that ran before; ``outputs``: what they printed. An output that the model writes a second
      time in a plain fence is a quotation.
    """
    before = _Before(ran, outputs)
    fence: _Open | None = None
    label = ""  # the last line that is not blank
    behind_output = bool(outputs)
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        whole = ended or text[end - 1] == "\n"
        line = text[start:end].rstrip("\r\n")
        if fence is not None:
            body = _body_before(fence, text, start, line) if whole else None
            if body is not None:
                if (reading := _closed(fence, body, end, before)) is not None:
                    return reading
                fence, label = None, ""
            elif (begun := _output_begins(line, whole, fence)) is not None:
                return FenceReading(_call(fence, text[fence.body : start], start, before), start + begun)
            elif whole and fence.language == "" and (inner := _opened(line, start, end)) is not None:
                # that one was no beginning, but an end of nothing
                fence = inner if inner.language in PYTHON and inner.fence.startswith(fence.fence) else fence
        elif line.strip():
            if (begun := _output_begins(line, whole)) is not None:
                return FenceReading(invented=start + begun)
            labelled = behind_output or _LABEL.search(label[-_LABEL_CHARS:]) is not None
            fence = _opened(line, start, end, labelled) if whole else None
            label, behind_output = line, False
        start = end
    return FenceReading(open=fence is not None)


def program(body: str) -> str:
    """Return the program that is the content of a fence: without carriage returns, without indentation that all its
    lines have, and without blank lines around it."""
    lines = body.replace("\r\n", "\n").split("\n")
    full = [line for line in lines if line.strip()]
    indent = min((len(line) - len(line.lstrip(" \t")) for line in full), default=0)
    if indent and len({line[:indent] for line in full}) == 1:
        lines = [line[indent:] if line.strip() else line.strip(" \t") for line in lines]
    return "\n".join(lines).strip("\n")


def _does_something(code: str, before: _Before, *, strict: bool) -> bool:
    """Tell whether a text without a language is a program. ``strict``: it must import, define, loop, branch or
    call."""
    tree = None if len(code) > _LONGEST else _parse(code)
    if tree is None or not any(_acts(statement, strict) for statement in tree.body):
        return False
    own, loaded = _names(tree)
    return "*" in own or "*" in before.names or loaded - own <= before.names


def _names(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Return the names that a program binds, and those that it reads. A star stands for all names of a module."""
    bound: set[str] = set()
    loaded: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
            bound.add(node.name or "")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(name.asname or name.name).partition(".")[0] for name in node.names}
    return bound, loaded


def spells_a_tag(text: str) -> int:
    """Return where a tag of our own protocol stands in a text, which a call by tags could not be told from; -1 where
    none does."""
    places = [at for tag in (CODE_START, CODE_END) if (at := text.find(tag)) >= 0]
    return min(places, default=-1)


def _opened(line: str, start: int, end: int, labelled: bool = False) -> _Open | None:
    """Return the fence that a line opens; None where it opens none."""
    if "```" not in line and "~~~" not in line:
        return None
    opener, prose = _OPENER.match(line), None
    if opener is None:
        opener = prose = _BEHIND_PROSE.match(line)
    if opener is None or _is_code_span(opener):
        return None
    language, lead = _language(opener["info"]), opener["lead"]
    if prose is not None and language not in PYTHON:
        return None
    return _Open(start + len(lead) if lead.strip() else start, end, opener["fence"], language, labelled)


def _body_before(fence: _Open, text: str, start: int, line: str) -> str | None:
    """Return the content of a fence that ``line`` closes; None where it does not. In CommonMark it stands on a line of
    its own; models also write it behind the last line of a program."""
    closer = _CLOSER.match(line)
    if closer is not None:
        return text[fence.body : start] if closer["fence"].startswith(fence.fence) else None
    closer = _CLOSED_BEHIND_CODE.match(line) if fence.language in PYTHON else None
    if closer is None or not closer["fence"].startswith(fence.fence) or fence.tries == _TRIES:
        return None
    fence.tries += 1
    body = text[fence.body : start] + closer["code"]
    return body if _parse(program(body)) else None


def _output_begins(line: str, whole: bool, within: _Open | None = None) -> int | None:
    """Return where in a line an output fence begins that says so; None where none does. ``within``: the fence that is
    open there; what quotes fences is none to interrupt, and in a longer one a shorter one is content."""
    opener = (_OPENER if whole else _OUTPUT_BEGUN).match(line)
    if opener is None or (whole and (_is_code_span(opener) or _language(opener["info"]) not in OUTPUT)):
        return None
    if within is not None:
        shorter = within.fence.startswith(opener["fence"]) and within.fence != opener["fence"]
        if shorter or within.language not in PYTHON | {""}:
            return None
    return opener.start("fence")


def _closed(fence: _Open, body: str, end: int, before: _Before) -> FenceReading | None:
    """Return what a fence that has closed asks for; None where the text goes on."""
    if (call := _call(fence, body, end, before)) is not None:
        return FenceReading(call)
    words = body.split()
    if words and fence.labelled and fence.language in _PLAIN and words not in before.outputs:
        return FenceReading(invented=fence.start)
    return None


def _call(fence: _Open, body: str, end: int, before: _Before) -> FencedCall | None:
    """Return the program in a fence; None where its content is none."""
    code = program(body)
    runs = fence.language in PYTHON or (fence.language == "" and _does_something(code, before, strict=fence.labelled))
    return FencedCall(fence.start, end, fence.fence, code) if runs and code.strip() else None


def _is_code_span(opener: re.Match[str]) -> bool:
    return opener["fence"][0] == "`" and "`" in opener["info"]


def _language(info: str) -> str:
    match = _LANGUAGE.match(info.strip())
    return match[1].lower() if match else ""


def _parse(code: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _acts(statement: ast.stmt, strict: bool) -> bool:
    """Tell whether a statement does something: it is no bare expression without a call, and no annotation."""
    if isinstance(statement, ast.Expr) or (strict and isinstance(statement, ast.Assign | ast.AugAssign)):
        return any(isinstance(node, ast.Call) for node in ast.walk(statement))
    return not isinstance(statement, ast.Pass) and not (
        isinstance(statement, ast.AnnAssign) and statement.value is None
    )

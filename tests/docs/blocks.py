"""Reads the code blocks of the pages, and the comments above them that say how they are tried."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))

_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,})(?P<language>[\w-]*)(?P<options>.*)$")
_COMMENT = re.compile(r"^\s*<!--\s*(.*?)\s*-->\s*$")
_SNIPPET = re.compile(r'^-+8<-+ "([^"]+)"$')


@dataclass(frozen=True)
class Block:
    """One fenced block. ``hints``: the comments right above it, in their order."""

    page: str
    line: int
    language: str
    text: str
    hints: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"docs/{self.page}:{self.line}"

    def hint(self, name: str) -> str | None:
        """What stands behind ``name`` in a comment above the block; None where no comment begins so."""
        found = (h[len(name) :].lstrip(": ") for h in self.hints if re.match(rf"{re.escape(name)}\b", h))
        return next(found, None)

    @property
    def is_run(self) -> bool:
        reason = self.hint("not run")
        assert reason != "", f"{self.where}: say why the block is not run: <!-- not run: it needs a GPU -->"
        return reason is None


def blocks(page: str) -> list[Block]:
    """All blocks of a page, with files of the repository put in for ``--8<--``."""
    lines = (DOCS / page).read_text().splitlines()
    out: list[Block] = []
    hints: list[str] = []
    at = 0
    while at < len(lines):
        opening, comment = _FENCE.match(lines[at]), _COMMENT.match(lines[at])
        if comment:
            hints.append(comment[1])
        elif opening:
            end = _end(lines, at + 1, opening["indent"] + opening["marks"], f"docs/{page}:{at + 1}")
            body = [_put_in(line.removeprefix(opening["indent"])) for line in lines[at + 1 : end]]
            out.append(Block(page, at + 1, opening["language"], "\n".join(body) + "\n", tuple(hints)))
            hints, at = [], end
        elif lines[at].strip():
            hints = []
        at += 1
    return out


def _end(lines: list[str], start: int, closing: str, where: str) -> int:
    for at in range(start, len(lines)):
        if lines[at].rstrip() == closing:
            return at
    raise AssertionError(f"{where}: the block has no end")


def _put_in(line: str) -> str:
    snippet = _SNIPPET.match(line)
    return (TOP / snippet[1]).read_text().rstrip() if snippet else line


@dataclass(frozen=True)
class Line:
    """One line of a shell block. ``commands``: the words of each program in it."""

    text: str
    commands: tuple[tuple[str, ...], ...]
    plain: bool  # one program, no pipe, no redirection, no variable


_OPERATORS = re.compile(r"[|&;<>()]+")


def shell_lines(block: Block) -> list[Line]:
    """The lines of a shell block without comments; continued lines are one."""
    out = []
    for text in re.sub(r"\\\n\s*", "", block.text).splitlines():
        text = text.removeprefix("$ ")
        lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError as error:
            raise AssertionError(f"{block.where}: {text}: {error}") from None
        if not words:
            continue
        commands: list[list[str]] = [[]]
        skip = False
        for word in words:
            if _OPERATORS.fullmatch(word):
                skip = word[0] in "<>"
                if not skip:
                    commands.append([])
            elif skip:
                skip = False
            else:
                commands[-1].append(word)
        programs = tuple(tuple(_without_variables(c)) for c in commands if c)
        out.append(Line(text, programs, len(words) == len(programs[0]) and "$" not in text and "*" not in text))
    return out


def _without_variables(words: list[str]) -> list[str]:
    """``A=1 program``: the program."""
    first = next((i for i, word in enumerate(words) if not re.match(r"\w+=", word)), len(words) - 1)
    return words[first:]

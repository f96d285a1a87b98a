"""The fences of Markdown in a model's own words, and what they pretend to be."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Nothing is given back (*+): a line of 100,000 tildes is tried in one way.
_FENCE = re.compile(r"[ \t>]*+(`{3,}+|~{3,}+)[ \t]*+([^\s`]*+)[^`]*+$")
_INLINE = re.compile(r"(`{3,20})([^`\n]+)\1")
_ABOVE = 200  # characters of the line above, its last ones
_TOOL = frozenset({"output", "outputs", "stdout", "system", "result", "results", "console"})
_PLAIN = frozenset({"", "text", "txt", "plaintext", "plain"})
# Words of the line above a fence that say that a program printed what is in it.
_PRINTS = re.compile(
    r"\b(?:outputs?|prints?|printed|stdout)\b"
    r"|\b(?:runn?(?:ing)?|execut(?:e|es|ed|ing))\b.{0,80}\b(?:gives?|yields?|returns?|produces?|shows?|get|obtain)\b",
    re.IGNORECASE,
)
_HEADING = re.compile(r"\W*(?:(?:the|expected|sample|example|program|code|execution)\s)*outputs?\W*", re.IGNORECASE)
_CODE = re.compile(r"\bprint\(|^[^\S\n]*+(?:import|from|def|for|while|if)\s.*\S", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Fence:
    """One block of Markdown. One that is never closed ends with the text."""

    language: str
    """The word behind the fence, in small letters."""
    body: str
    line_above: str
    """The end of the last line before it that is not empty."""

    @property
    def is_python(self) -> bool:
        return self.language in ("python", "python3", "py")

    @property
    def is_tool(self) -> bool:
        """Whether it is what the tool writes: output, or notices."""
        return self.language in _TOOL

    @property
    def shows_output(self) -> bool:
        """Whether it stands behind the word "Output", or is a plain fence without code behind words that say that a
        program printed this."""
        if _HEADING.fullmatch(self.line_above):
            return True
        plain = self.language in _PLAIN and _CODE.search(self.body) is None
        return plain and _PRINTS.search(self.line_above) is not None


def fences_in(text: str) -> list[Fence]:
    """Return the fences of a text in their order."""
    if "```" not in text and "~~~" not in text:
        return []
    fences: list[Fence] = []
    opened: tuple[str, str, str] | None = None  # the fence, its language, the line above
    body: list[str] = []
    above = ""
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if opened is not None:
            mark, language, line_above = opened
            if match is not None and match[1].startswith(mark) and not match[2]:
                fences.append(Fence(language, "\n".join(body), line_above))
                opened, body, above = None, [], ""
            else:
                body.append(line)
        elif match is not None:
            opened = (match[1], match[2].lower().strip("{}.:"), above)
        else:
            fences.extend(Fence("", m[2], line[max(0, m.start() - _ABOVE) : m.start()]) for m in _INLINE.finditer(line))
            above = line[-_ABOVE:] if line.strip() else above
    if opened is not None:
        fences.append(Fence(opened[1], "\n".join(body), opened[2]))
    return fences

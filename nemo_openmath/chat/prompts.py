"""Prompt templates: text files that a user can replace, one by one, by files of their own.

A template is a text with ``{field}`` places. Only the fields it is rendered with are places; any other brace (LaTeX
is full of them) stands for itself. Lines that are a word in brackets divide a file:

    [system]         as the first line: a system turn follows, which [user] ends
    [user]
    ... {problem} ... {solutions} ...
    [solution]       how one of the {solutions} is written; without it: "Solution {index}:", a line break, {solution}
    ### {index}
    {solution}
    [between] "\\n\\n"  what stands between two of them, as a JSON string; without it: an empty line
    [end]            as the last line: line breaks before it count. Without it those at the end of the file do not
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from nemo_openmath.core.errors import UserError, refuse_device
from nemo_openmath.core.tokenizer import Message

ITEM = "Solution {index}:\n{solution}"
BETWEEN = "\n\n"
_ITEM_PLACES = re.compile(r"\{(index|solution)\}")
_BETWEEN_LINE = re.compile(r"\n\[between\] ([^\n]*)\Z")


@dataclass(frozen=True)
class Template:
    """A prompt with named places. ``fields`` must occur in ``user`` or ``system``, each once or more."""

    name: str
    user: str
    system: str | None
    fields: tuple[str, ...]
    item: str = ITEM
    """How one of several solutions is written, with places for ``{index}``, counted from 0, and ``{solution}``."""
    between: str = BETWEEN
    """What stands between two of them."""

    def has(self, field: str) -> bool:
        """Return whether there is a place for a field."""
        return f"{{{field}}}" in self.user + (self.system or "")

    @property
    def digest(self) -> str:
        """A digest of what is asked. It goes into the ids of what the prompt generated: another prompt, another sample.
        Two files that list solutions in the same way are one prompt."""
        text = f"{self.system}\0{self.user}"
        if "solutions" in self.fields and (self.item, self.between) != (ITEM, BETWEEN):
            probe = dict.fromkeys(self.fields, "\0") | {"solutions": self.listing(["\1", "\2", "\3"])}
            text = "\0".join(f"{m.role}\0{m.content}" for m in self.messages(**probe))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def listing(self, solutions: Sequence[str]) -> str:
        """Return solutions as they stand at the place ``{solutions}``. They are inserted as they are."""
        return self.between.join(
            _ITEM_PLACES.sub(lambda m, i=index, s=solution: str(i) if m.group(1) == "index" else s, self.item)  # type: ignore[misc]
            for index, solution in enumerate(solutions)
        )

    def to_text(self) -> str:
        """Return the file that :func:`load_template` reads this template from."""
        text = self.user if self.system is None else f"[system]\n{self.system}\n[user]\n{self.user}"
        if (self.item, self.between) != (ITEM, BETWEEN):
            text += f"\n[solution]\n{self.item}"
            if self.between != BETWEEN:
                text += f"\n[between] {json.dumps(self.between, ensure_ascii=False)}"
        return f"{text}\n[end]\n" if text.endswith(("\n", "\n[end]")) else f"{text}\n"

    def messages(self, **values: object) -> tuple[Message, ...]:
        """Return the turns with the places filled in. Values are inserted as they are and never scanned for places."""
        if set(values) != set(self.fields):
            raise ValueError(f"template {self.name} takes {self.fields}, got {tuple(values)}")

        def fill(text: str) -> str:
            return self._places.sub(lambda m: str(values[m.group(1)]), text)

        turns = [Message("user", fill(self.user))]
        return (Message("system", fill(self.system)), *turns) if self.system is not None else tuple(turns)

    def match(self, user: str) -> dict[str, str] | None:
        """Return the field values with which the user turn reads like this; None where there are none. The inverse of
        :meth:`messages`."""
        match = self._inverse.fullmatch(user)
        return match.groupdict() if match else None

    @cached_property
    def _places(self) -> re.Pattern[str]:
        return (
            re.compile(r"\{(" + "|".join(map(re.escape, self.fields)) + r")\}") if self.fields else re.compile(r"(?!)")
        )

    @cached_property
    def _inverse(self) -> re.Pattern[str]:
        seen: set[str] = set()
        parts: list[str] = []
        at = 0
        for place in self._places.finditer(self.user):
            name = place.group(1)
            parts.append(re.escape(self.user[at : place.start()]))
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>.*?)")
            seen.add(name)
            at = place.end()
        return re.compile("".join(parts) + re.escape(self.user[at:]), re.S)


# The fields of every prompt of the pipeline; a user's file must use them all,
FIELDS: dict[str, tuple[str, ...]] = {
    "cot": ("problem",),
    "tir": ("total_code_executions", "problem"),
    "tir-fences": ("total_code_executions", "problem"),
    "tir-tools": ("total_code_executions", "problem"),
    "genselect": ("num_solutions", "max_idx", "problem", "solutions"),
    "extract-problems": ("forum_post",),
    "classify-proof": ("problem",),
    "classify-multiple-choice": ("problem",),
    "classify-binary": ("problem",),
    "classify-invalid": ("problem",),
    "convert-proof": ("problem", "forum_discussions"),
    "extract-answer": ("problem", "forum_discussions"),
    "decontaminate": ("problem", "candidate"),
    "decontaminate-family": ("problem", "candidate"),
    "summarize": ("problem", "solution"),
    "summarize-comparison": ("question", "comparison"),
    "judge": ("problem", "predicted_answer", "expected_answer"),
    "classify-novelty": ("fragment",),
    "classify-significance": ("fragment",),
}
# but these: a prompt need not say how many solutions there are, or how often code may be called.
OPTIONAL = {"genselect": ("num_solutions", "max_idx"), "tir": ("total_code_executions",)}


def load_template(name: str, path: str | Path | None = None) -> Template:
    """Return the prompt ``name`` as shipped, or read from the user's file. Raises UserError where a place is
    missing."""
    if name not in FIELDS:
        raise UserError(f"unknown prompt {name!r}", remedy=f"one of {', '.join(FIELDS)}")
    if path is None:
        text = (files(__package__) / "prompts" / f"{name}.txt").read_text()
        path = f"{name}.txt"
    else:
        try:
            refuse_device(Path(path))
            text = Path(path).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise UserError(f"cannot read the prompt ({error.strerror})", file=path) from error
        except UnicodeDecodeError as error:
            raise UserError("the prompt is not UTF-8", file=path, remedy="save it as UTF-8") from error
    return parse_template(name, text, path)


def parse_template(name: str, text: str, path: str | Path) -> Template:
    """Return the prompt ``name`` of the text of a file. Raises UserError, which names ``path``."""
    system, item, between = None, ITEM, BETWEEN
    text = text.rstrip("\n").removesuffix("\n[end]")
    if text.startswith("[system]\n"):
        system, separator, text = text.removeprefix("[system]\n").partition("\n[user]\n")
        if not separator:
            raise UserError("[system] is not followed by [user]", file=path, remedy="add a line [user]")
    if "solutions" in FIELDS[name] and "\n[solution]\n" in text:
        text, _, item = text.rpartition("\n[solution]\n")
        if line := _BETWEEN_LINE.search(item):
            item, between = item[: line.start()], _json_text(line.group(1), path)
        for field in ("index", "solution"):
            if item.count(f"{{{field}}}") < 1:
                raise UserError(
                    f"[solution] has no place for {{{field}}}", file=path, remedy=f"write {{{field}}} where it goes"
                )
    template = Template(name, text, system, FIELDS[name], item, between)
    for field in template.fields:
        if field not in OPTIONAL.get(name, ()) and not template.has(field):
            raise UserError(
                f"the prompt has no place for {{{field}}}", file=path, remedy=f"write {{{field}}} where it goes"
            )
    return template


def _json_text(line: str, path: str | Path) -> str:
    try:
        if isinstance(text := json.loads(line), str):
            return text
    except ValueError:
        pass
    raise UserError(f"[between] is followed by {line!r}", file=path, remedy='write a JSON string, such as "\\n\\n"')

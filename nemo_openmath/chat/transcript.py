"""One conversation: who wrote what, and with which token ids.

A transcript is the prompt messages and then the *pieces* of the assistant's turn in order. A piece has one author:
the model (its ids are the ids that it generated, and are trained on) or the runner (program output and notices,
which are not). *Segments* are the reader's view of the same text: reasoning, code, output, notice, summary. They
are derived from the pieces, never stored, so the two cannot disagree.

    messages      user: Solve the following ...
    pieces        model                               runner                         model
    text          <think> try <tool_call> ... </...>  ```output 42 ``` ```system ..  so 42 </think> The answer ...
    segments      reasoning   code                    output       notice            reasoning      summary

**One <think>, whoever wrote it.** The text of a turn that thinks begins with one ``<think>`` and holds one
``</think>``, in every record. Who wrote the first is an author like the others: ``model`` where the model did,
``template`` where the chat template had it in the prompt already (QwQ, DeepSeek-R1), or where the pipeline put an
answer's thinking into tags. Training asks the student's own template: where that opens the thought, neither kind of
``<think>`` is put behind it again; where it does not, the student has to write it, so it is trained on, whoever wrote
it for the teacher (``encode.py``). A turn without any tag does not think: its whole text is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from nemo_openmath.core.tags import CODE_END, CODE_START, THINK_END, THINK_START
from nemo_openmath.core.tokenizer import Message


class Author(StrEnum):
    MODEL = "model"
    RUNNER = "runner"
    TEMPLATE = "template"  # of a <think> in front, see above


class Kind(StrEnum):
    REASONING = "reasoning"
    CODE = "code"
    OUTPUT = "output"
    NOTICE = "notice"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive text of one author. ``ids`` are of the tokenizer named in ``Transcript.tokenizer``."""

    author: Author
    text: str
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    kind: Kind
    text: str

    @property
    def body(self) -> str:
        """The text without tags and fences: the program, the output, the notice."""
        if self.kind is Kind.CODE:
            return self.text.removeprefix(CODE_START).removesuffix(CODE_END).strip("\n")
        if self.kind in (Kind.OUTPUT, Kind.NOTICE):
            return self.text.strip("\n").split("\n", 1)[-1].removesuffix("```")
        return self.text


@dataclass(frozen=True, slots=True)
class Transcript:
    """``ended``: the model closed its turn (an end-of-turn token follows the last piece)."""

    messages: tuple[Message, ...]
    pieces: tuple[Piece, ...] = ()
    ended: bool = True
    tokenizer: str | None = None  # fingerprint of the tokenizer that ``ids`` belong to

    @property
    def text(self) -> str:
        """The assistant's turn as stored in ``generation`` fields."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def said(self) -> str:
        """The text without what programs printed: a tag or a box in that is nobody's word."""
        return "".join(piece.text if piece.author is not Author.RUNNER else "\n" for piece in self.pieces)

    def segments(self) -> list[Segment]:
        """The reader's view. ``"".join(s.text for s in segments()) == text``, always."""
        parts: list[Segment] = []
        for piece in self._told():
            if piece.author is Author.RUNNER:
                parts.extend(_runner_segments(piece.text))
            else:
                parts.extend(Segment(kind, text) for kind, text in _split_code(piece.text))
        last = max((i for i, s in enumerate(parts) if s.kind is Kind.REASONING and THINK_END in s.text), default=None)
        if last is None:
            return parts
        head, tag, tail = parts[last].text.rpartition(THINK_END)  # what follows the last one is the summary
        behind = [Segment(Kind.SUMMARY, s.text) if s.kind is Kind.REASONING else s for s in parts[last + 1 :]]
        summary = [Segment(Kind.SUMMARY, tail)] if tail else []
        return [*parts[:last], Segment(Kind.REASONING, head + tag), *summary, *behind]

    def _told(self) -> tuple[Piece, ...]:
        """The pieces, the template's <think> as part of the text behind it."""
        match self.pieces:
            case (Piece(author=Author.TEMPLATE) as first, Piece(author=Author.MODEL) as second, *rest):
                return (Piece(Author.MODEL, first.text + second.text), *rest)
        return self.pieces

    @property
    def thinking(self) -> Literal["none", "whole", "broken"]:
        """Whether the turn thinks, and its tags are one ``<think>`` at its beginning and behind it one ``</think>``."""
        if not self.thinks:
            return "none"
        prose = self.prose
        once = prose.count(THINK_START) == prose.count(THINK_END) == 1
        return "whole" if once and self.text.lstrip().startswith(THINK_START) else "broken"

    @property
    def thinks(self) -> bool:
        """Whether a tag of thinking stands in the text, outside code and output. The empty thought that some templates
        write is none."""
        prose = replace(self, pieces=self.pieces[1:]).prose if self._thought_is_closed else self.prose
        return THINK_START in prose or THINK_END in prose

    @property
    def prose(self) -> str:
        """The text without code and what programs printed."""
        return "".join(s.text for s in self.segments() if s.kind in _PROSE)

    @property
    def _thought_is_closed(self) -> bool:
        return bool(self.pieces) and self.pieces[0].author is Author.TEMPLATE and THINK_END in self.pieces[0].text

    @property
    def summary(self) -> str | None:
        """Text after the last ``</think>``; None where the reasoning never ended. Of a turn that does not think, all
        its text but code and output."""
        segments = [s for s in self.segments() if s.kind in _PROSE]
        parts = [s.text for s in segments if s.kind is Kind.SUMMARY]
        if not parts and not self.thinks:
            parts = [s.text for s in segments]
        text = "".join(parts)
        return text.strip() if parts and THINK_START not in text else None

    def without_summary(self) -> tuple[Piece, ...] | None:
        """The pieces up to the last ``</think>`` that the model wrote; None where it wrote none outside code."""
        for number in reversed(range(len(self.pieces))):
            piece, at, end = self.pieces[number], 0, -1
            for kind, text in _split_code(piece.text) if piece.author is Author.MODEL else ():
                if kind is not Kind.CODE and THINK_END in text:
                    end = at + text.rindex(THINK_END) + len(THINK_END)
                at += len(text)
            if end >= 0:
                return (*self.pieces[:number], Piece(Author.MODEL, piece.text[:end]))
        return None

    def with_opening(self) -> Transcript:
        """The same transcript; where its thinking ends without having begun, with the ``<think>`` that stood in the
        prompt of the model that wrote it."""
        head, ended, _ = self.prose.partition(THINK_END)
        if not ended or THINK_START in head:
            return self
        return replace(self, pieces=(Piece(Author.TEMPLATE, OPENING), *self.pieces))

    @property
    def has_uncalled_code(self) -> bool:
        """Whether the model wrote Python as Markdown has it, which nothing runs: it did not call it."""
        return _FENCED.search(self.prose) is not None

    def code_blocks(self) -> list[str]:
        return [s.body for s in self.segments() if s.kind is Kind.CODE]

    @classmethod
    def from_text(cls, messages: tuple[Message, ...], text: str, *, ended: bool = True) -> Transcript:
        """Recover the pieces of a stored assistant turn (published data, other tools): the runner's are the output
        and system fences that directly follow a code block."""
        return cls(messages, tuple(_split_authors(text)), ended)

    def to_json(self) -> dict[str, Any]:
        return {
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "pieces": [
                {"author": str(p.author), "text": p.text} | ({} if p.ids is None else {"ids": list(p.ids)})
                for p in self.pieces
            ],
            "ended": self.ended,
            "tokenizer": self.tokenizer,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Transcript:
        return cls(
            messages=tuple(Message(m["role"], m["content"]) for m in row["messages"]),
            pieces=tuple(
                Piece(Author(p["author"]), p["text"], tuple(p["ids"]) if p.get("ids") is not None else None)
                for p in row["pieces"]
            ),
            ended=row.get("ended", True),
            tokenizer=row.get("tokenizer"),
        )


OPENING = f"{THINK_START}\n"
_PROSE = (Kind.REASONING, Kind.SUMMARY)
_FENCED = re.compile(r"^[ \t]*```(?:python|py)\b", re.IGNORECASE | re.MULTILINE)
_NOTICE = re.compile(r"```system\n.*?```\n", re.S)
# The output fence of a block ends at the fence that a notice follows; without a notice, at the first closing fence.
_RUNNER = re.compile(
    r"\n{0,2}```output\n(?:(?:(?!<tool_call>).)*?```\n(?=```system\n)```system\n.*?```\n|.*?```\n)", re.S
)


def _split_code(text: str) -> Iterator[tuple[Kind, str]]:
    """Split model text into reasoning and code; an unclosed code block runs to the end of the text."""
    at = 0
    while (start := text.find(CODE_START, at)) >= 0:
        end = text.find(CODE_END, start)
        stop = len(text) if end < 0 else end + len(CODE_END)
        if start > at:
            yield Kind.REASONING, text[at:start]
        yield Kind.CODE, text[start:stop]
        at = stop
    if at < len(text):
        yield Kind.REASONING, text[at:]


def _split_authors(text: str) -> Iterator[Piece]:
    """Model and runner pieces of a stored turn: a runner piece directly follows a closed code block."""
    start = at = 0
    while (end := text.find(CODE_END, at)) >= 0:
        at = end + len(CODE_END)
        block = _RUNNER.match(text, at)
        if block is None:
            continue
        yield Piece(Author.MODEL, text[start:at])
        yield Piece(Author.RUNNER, block.group(0))
        start = at = block.end()
    if start < len(text):
        yield Piece(Author.MODEL, text[start:])


def _runner_segments(text: str) -> Iterator[Segment]:
    notices = list(_NOTICE.finditer(text))
    cut = notices[-1].start() if notices and notices[-1].end() == len(text) else len(text)
    if cut:
        yield Segment(Kind.OUTPUT, text[:cut])
    if cut < len(text):
        yield Segment(Kind.NOTICE, text[cut:])

"""One conversation: who wrote what, and with which token ids.

A transcript is the prompt messages and then the *spans* of the assistant's turn in order. A span has one author: the
model (its ids are the ids that it generated, and are trained on), or the tool (the output of programs and the notices
of the code budget, which are not trained on). *Segments* are the reader's view of the same text: reasoning, code,
output, notice, summary. They are derived from the spans and never stored, so the two cannot disagree.

    messages      user: Solve the following ...
    spans         model                               tool                           model
    text          <think> try <tool_call> ... </...>  ```output 42 ``` ```system ..  so 42 </think> The answer ...
    segments      reasoning   code                    output       notice            reasoning      summary

**One <think>, whoever wrote it.** The text of a turn that thinks begins with one ``<think>`` and holds one
``</think>``, in every record. Who wrote the first is an author like the others: ``MODEL`` where the model did,
``TEMPLATE`` where the chat template had it in the prompt already (QwQ, DeepSeek-R1), or where the pipeline put an
answer's thinking into tags.

Training asks the student's own template. Where that opens the thought, neither kind of ``<think>`` is put behind it
again. Where it does not, the student has to write it, so it is trained on, whoever wrote it for the teacher
(``encode.py``). A turn without any tag does not think: its whole text is the answer.

In files a span is called a piece, the tool is called runner, and ``finished`` is called ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

from nemo_openmath.chat.token_ids import TokenIds
from nemo_openmath.core.records.bodies import TranscriptData, loaded
from nemo_openmath.core.tags import CODE_END, CODE_START, THINK_END, THINK_START
from nemo_openmath.core.tokenizer import Message


class Author(StrEnum):
    """Who wrote a span."""

    MODEL = "model"
    TOOL = "runner"  # the sandbox's output, and the notices
    TEMPLATE = "template"  # of a <think> in front, see above


class Kind(StrEnum):
    """What a segment is."""

    REASONING = "reasoning"
    CODE = "code"
    OUTPUT = "output"
    NOTICE = "notice"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive text of one author."""

    author: Author
    text: str
    ids: Sequence[int] | None = None
    """Token ids of the tokenizer named in ``Transcript.tokenizer``; None where nobody generated them. A tuple, or, of a
    transcript that was read, :class:`TokenIds`."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive text of one kind."""

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


@dataclass(frozen=True)
class Transcript:
    """The messages of a prompt, and the assistant's turn that follows them. What is derived from the text is derived
    once, when it is asked for."""

    messages: tuple[Message, ...]
    spans: tuple[Span, ...] = ()
    finished: bool = True
    """Whether the model closed its turn: an end-of-turn token follows the last span."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer that the spans' ``ids`` belong to."""

    @property
    def text(self) -> str:
        """The whole text of the assistant's turn."""
        return "".join(span.text for span in self.spans)

    @property
    def said(self) -> str:
        """The text without what programs printed: a tag or a box in that is nobody's word."""
        return "".join(span.text if span.author is not Author.TOOL else "\n" for span in self.spans)

    def segments(self) -> list[Segment]:
        """Return the reader's view. The texts of the segments, joined, are always the text of the turn."""
        return list(self._segments)

    @cached_property
    def _segments(self) -> list[Segment]:
        parts: list[Segment] = []
        for span in self._with_template_joined():
            if span.author is Author.TOOL:
                parts.extend(_tool_segments(span.text))
            else:
                parts.extend(Segment(kind, text) for kind, text in _split_code(span.text))
        last = max((i for i, s in enumerate(parts) if s.kind is Kind.REASONING and THINK_END in s.text), default=None)
        if last is None:
            return parts
        head, tag, tail = parts[last].text.rpartition(THINK_END)  # what follows the last one is the summary
        behind = [Segment(Kind.SUMMARY, s.text) if s.kind is Kind.REASONING else s for s in parts[last + 1 :]]
        summary = [Segment(Kind.SUMMARY, tail)] if tail else []
        return [*parts[:last], Segment(Kind.REASONING, head + tag), *summary, *behind]

    def _with_template_joined(self) -> tuple[Span, ...]:
        """Return the spans with the template's <think> as a part of the text behind it."""
        match self.spans:
            case (Span(author=Author.TEMPLATE) as opening, Span(author=Author.MODEL) as text, *others):
                return (Span(Author.MODEL, opening.text + text.text), *others)
        return self.spans

    @property
    def thinking(self) -> Literal["none", "whole", "broken"]:
        """Whether the turn thinks. ``whole``: its tags are one ``<think>`` at its beginning and behind it one
        ``</think>``; ``broken``: they are others."""
        if not self.thinks:
            return "none"
        prose = self.prose
        once = prose.count(THINK_START) == prose.count(THINK_END) == 1
        return "whole" if once and self.text.lstrip().startswith(THINK_START) else "broken"

    @cached_property
    def thinks(self) -> bool:
        """Whether a tag of thinking stands in the text, outside code and output. The empty thought that some templates
        write is none."""
        prose = replace(self, spans=self.spans[1:]).prose if self._thought_is_closed else self.prose
        return THINK_START in prose or THINK_END in prose

    @cached_property
    def prose(self) -> str:
        """The text without code and what programs printed."""
        text = self.text
        if CODE_START not in text and all(span.author is not Author.TOOL for span in self.spans):
            return text  # most texts are prose alone, and long
        return "".join(s.text for s in self._segments if s.kind in PROSE)

    @property
    def _thought_is_closed(self) -> bool:
        return bool(self.spans) and self.spans[0].author is Author.TEMPLATE and THINK_END in self.spans[0].text

    @property
    def summary(self) -> str | None:
        """Text after the last ``</think>``; None where the reasoning never ended. Of a turn that does not think, it is
        all the text but code and output."""
        segments = [s for s in self._segments if s.kind in PROSE]
        parts = [s.text for s in segments if s.kind is Kind.SUMMARY]
        if not parts and not self.thinks:
            parts = [s.text for s in segments]
        text = "".join(parts)
        return text.strip() if parts and THINK_START not in text else None

    def without_summary(self) -> tuple[Span, ...] | None:
        """Return the spans up to the last ``</think>`` that the model wrote; None where it wrote none outside code."""
        for number in reversed(range(len(self.spans))):
            span, start, end = self.spans[number], 0, -1
            for kind, text in _split_code(span.text) if span.author is Author.MODEL else ():
                if kind is not Kind.CODE and THINK_END in text:
                    end = start + text.rindex(THINK_END) + len(THINK_END)
                start += len(text)
            if end >= 0:
                return (*self.spans[:number], Span(Author.MODEL, span.text[:end]))
        return None

    def with_opening(self) -> Transcript:
        """Return the same transcript. Where its thinking ends without having begun, it gets the ``<think>`` that stood
        in the prompt of the model that wrote it."""
        head, end, _ = self.prose.partition(THINK_END)
        if not end or THINK_START in head:
            return self
        return replace(self, spans=(Span(Author.TEMPLATE, OPENING), *self.spans))

    @property
    def has_uncalled_code(self) -> bool:
        """Whether the model wrote Python in a fence of Markdown, which nothing runs: it did not call it."""
        return _FENCED.search(self.prose) is not None

    def code_blocks(self) -> list[str]:
        """Return the programs that the model called."""
        return [s.body for s in self._segments if s.kind is Kind.CODE]

    @classmethod
    def from_text(cls, messages: tuple[Message, ...], text: str, *, finished: bool = True) -> Transcript:
        """Recover the spans of a stored turn (published data, other tools). The tool's are the output and system fences
        that directly follow a code block."""
        return cls(messages, tuple(_split_authors(text)), finished)

    def without_ids(self) -> Transcript:
        """Return the same transcript without token ids."""
        return replace(self, spans=tuple(Span(span.author, span.text) for span in self.spans), tokenizer=None)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, as records hold it. Raises ValueError where an id is none of three bytes."""
        return {
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "pieces": [
                {"author": str(p.author), "text": p.text} | ({} if p.ids is None else {"ids": _text_of(p.ids)})
                for p in self.spans
            ],
            "ended": self.finished,
            "tokenizer": self.tokenizer,
        }

    @classmethod
    def from_json(cls, stored: TranscriptData, *, ids: bool = True) -> Transcript:
        """Read what :meth:`to_json` wrote, what it wrote once (ids as a list of integers), or the body that either was
        stored as. Without ``ids`` it is :meth:`without_ids`, in half the time where there are any.

        Raises KeyError, ValueError or TypeError where it is something else, and UserError where the body is not there.
        """
        row = loaded(stored)
        return cls(
            messages=tuple(Message(m["role"], m["content"]) for m in row["messages"]),
            spans=tuple(
                Span(Author(p["author"]), p["text"], _ids_of(p["ids"]) if ids and p.get("ids") is not None else None)
                for p in row["pieces"]
            ),
            finished=row.get("ended", True),
            tokenizer=row.get("tokenizer") if ids else None,
        )


OPENING = f"{THINK_START}\n"
PROSE = (Kind.REASONING, Kind.SUMMARY)
"""What the reader reads as words: neither code nor what the tool wrote."""
_FENCED = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*\{?\.?(?:python|py)3?\b", re.IGNORECASE | re.MULTILINE)
_OUTPUT = re.compile(r"\n{0,2}```output\n")
_FENCE, _NOTICE = "```\n", "```system\n"


def _text_of(ids: Sequence[int]) -> str:
    return (ids if isinstance(ids, TokenIds) else TokenIds(ids)).to_text()


def _ids_of(ids: str | list[int]) -> Sequence[int]:
    return TokenIds.from_text(ids) if isinstance(ids, str) else tuple(ids)


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


def _split_authors(text: str) -> Iterator[Span]:
    """Split a stored turn into spans of model and tool: the tool's directly follow a closed code block."""
    start = at = 0
    ends = _BlockEnds(text)
    while (code_end := text.find(CODE_END, at)) >= 0:
        at = code_end + len(CODE_END)
        output = _OUTPUT.match(text, at)
        end = None if output is None else ends.of(output.end())
        if end is not None:
            yield Span(Author.MODEL, text[start:at])
            yield Span(Author.TOOL, text[at:end])
            start = at = end
    if start < len(text):
        yield Span(Author.MODEL, text[start:])


class _Places:
    """The places of a sign in a text, for a reader who asks from growing places on: each character is read once."""

    def __init__(self, text: str, sign: str):
        self._text, self._sign, self._next = text, sign, -1

    def at(self, start: int) -> int:
        """Return the first place from ``start`` on; the length of the text where there is none."""
        if self._next < start:
            place = self._text.find(self._sign, start)
            self._next = len(self._text) if place < 0 else place
        return self._next


class _BlockEnds:
    """Where the blocks of output in a text end, in their order. One ends at the fence that a notice follows; without a
    notice before the next call, at the first closing fence."""

    def __init__(self, text: str):
        self._none = len(text)
        self._fences, self._noticed = _Places(text, _FENCE), _Places(text, _FENCE + _NOTICE)
        self._calls, self._behind_notice = _Places(text, CODE_START), _Places(text, _FENCE)

    def of(self, body: int) -> int | None:
        """Return where the block ends whose output begins at ``body``; None where it never does."""
        noticed = self._noticed.at(body)
        if noticed < self._calls.at(body):
            end = self._behind_notice.at(noticed + len(_FENCE + _NOTICE))
            if end < self._none:
                return end + len(_FENCE)
        fence = self._fences.at(body)
        return fence + len(_FENCE) if fence < self._none else None


def _tool_segments(text: str) -> Iterator[Segment]:
    cut, at = len(text), 0
    while (start := text.find(_NOTICE, at)) >= 0 and (end := text.find(_FENCE, start + len(_NOTICE))) >= 0:
        at = end + len(_FENCE)
        cut = start if at == len(text) else len(text)
    if cut:
        yield Segment(Kind.OUTPUT, text[:cut])
    if cut < len(text):
        yield Segment(Kind.NOTICE, text[cut:])

"""Which rows a training gets: rejects by format, and the second round's choice (paper section 5.1).

What makes a solution good (length, repetition, relevance of its code) is judged in ``solutions/``; here only the
form of a row counts: a sample with no answer, two answers or an unfinished block teaches exactly that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_openmath.chat import Author, Kind, Segment, Transcript
from nemo_openmath.chat.blocks import judgment_of
from nemo_openmath.core.bounds import Length, Share, Words
from nemo_openmath.core.records import Mode
from nemo_openmath.core.records.types import SftRow
from nemo_openmath.core.tags import CODE_END, CODE_START
from nemo_openmath.grading.extraction import extract_answer


@dataclass(frozen=True, slots=True)
class FormatRules:
    """Each rule names a reject; all are on by default and can be switched off one by one."""

    box: bool = True
    """A solution (cot, tir) ends with a complete boxed answer."""
    one_box: bool = True
    """All boxed answers of a solution are the same."""
    think: Literal["auto", "required", "off"] = "auto"
    """``required``: a solution has <think> ... </think> once, in this order. ``auto``: so it is where it has such tags
    at all; a solution without is one of a model that does not think. ``off``: the tags are not looked at."""
    blocks: bool = True
    """Code blocks are closed and answered by an output block; no output stands elsewhere."""
    judgment: bool = True
    """A selection (genselect) names its choice."""
    turns: bool = True
    """A solution holds no control token of ChatML, as one does that ran on into turns of its own. In a problem such a
    token is text."""

    def reject(self, row: SftRow, transcript: Transcript | None = None) -> str | None:
        """Return the first reason against this row, or None. ``transcript``: the row's, where it was read already."""
        transcript = transcript or Transcript.from_json(row.transcript, ids=False)
        if self.turns and any("<|im_" in p.text for p in transcript.spans if p.author is Author.MODEL):
            return "control token in the text"
        if row.mode is Mode.GENSELECT:
            return "no judgment" if self.judgment and judgment_of(transcript.summary or "") is None else None
        segments = transcript.segments()
        if self.think != "off" and (thinking := transcript.thinking) != "whole":
            if thinking == "broken":
                return "think tags out of order"
            if self.think == "required":
                return "no think tags"
        if self.blocks and not _blocks_are_whole(segments):
            return "code or output block that is not whole"
        extraction = extract_answer(transcript.said)
        if self.box and extraction.answer is None:
            return "no boxed answer"
        if self.one_box and len(extraction.boxes) > 1:
            return "several different boxed answers"
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """A part of the rows, by what is known of their problems.

    Lengths are chosen when packing (``at_least`` of ``sft.pack``), where they are known in tokens.
    """

    modes: Annotated[tuple[str, ...], Length()] | None = None
    """Only rows of these modes (cot, tir, genselect); null: of all."""
    sources: Annotated[tuple[str, ...], Words(1)] | None = None
    """Only problems whose source contains one of these words, in any case; null: of all sources."""
    max_pass_rate: Share | None = None
    """Only problems whose pass rate is known and at most this; null: of all pass rates. Paper section 5.1: 0.3."""
    keep_unknown: bool = False
    """With ``max_pass_rate``, rows without a known pass rate stay."""

    def reject(self, row: SftRow) -> str | None:
        """Return the first reason against this row, or None."""
        if self.modes is not None and row.mode not in self.modes:
            return "other mode"
        if self.sources is not None and not any(s.lower() in row.problem_source.lower() for s in self.sources):
            return "other problem source"
        if self.max_pass_rate is not None:
            if row.pass_rate is None:
                return None if self.keep_unknown else "pass rate unknown"
            if row.pass_rate > self.max_pass_rate:
                return "pass rate too high"
        return None


def _blocks_are_whole(segments: Sequence[Segment]) -> bool:
    for i, segment in enumerate(segments):
        after = segments[i + 1].kind if i + 1 < len(segments) else None
        if segment.kind is Kind.CODE and not (segment.text.endswith(CODE_END) and after is Kind.OUTPUT):
            return False
        if segment.kind in (Kind.REASONING, Kind.SUMMARY) and (
            CODE_START in segment.text or CODE_END in segment.text or "```output\n" in segment.text
        ):
            return False
    return True

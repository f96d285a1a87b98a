"""Which rows are trained on: rejects by format, and the second round's choice (paper section 5.1).

What makes a solution good (length, repetition, relevance of its code) is judged in ``solutions/``; here only the
form of a row counts: a sample with no answer, two answers or an unfinished block teaches exactly that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from nemo_openmath.chat import Author, Kind, Segment, Transcript
from nemo_openmath.chat.blocks import judgment_of
from nemo_openmath.core.bounds import Length, Share
from nemo_openmath.core.records import Mode
from nemo_openmath.core.records.types import SftRow
from nemo_openmath.core.tags import CODE_END, CODE_START
from nemo_openmath.grading.extraction import extract_answer


@dataclass(frozen=True, slots=True)
class FormatRules:
    """Each rule names a reject; all are on by default and can be switched off one by one.

    ``box``: a solution (cot, tir) ends with a complete boxed answer; ``one_box``: with one only; ``think``: "auto":
    its tags of thinking, if it has any, are <think> ... </think> once, in this order (what has none is a solution of a
    model that does not think: all of it is the answer); "required": it has them; "off": not looked at; ``blocks``: code
    blocks are closed and answered by an output block, no output stands elsewhere; ``judgment``: a selection (genselect)
    names its choice; ``turns``: a solution holds no control token of ChatML, as one does that ran on into turns of its
    own. In a problem such a token is text.
    """

    box: bool = True
    one_box: bool = True
    think: Literal["auto", "required", "off"] = "auto"
    blocks: bool = True
    judgment: bool = True
    turns: bool = True

    def reject(self, row: SftRow) -> str | None:
        """The first reason against this row, or None."""
        transcript = Transcript.from_json(row.transcript)
        if self.turns and any("<|im_" in p.text for p in transcript.pieces if p.author is Author.MODEL):
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
        found = extract_answer(transcript.said)
        if self.box and found.answer is None:
            return "no boxed answer"
        if self.one_box and len(found.boxes) > 1:
            return "several different boxed answers"
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """A part of the rows by what is known of their problem. None: does not matter.

    ``modes``: cot, tir, genselect. ``sources``: the problem's source contains one of these words (any case).
    ``max_pass_rate``: at most this; rows without a known pass rate are left out then, unless ``keep_unknown``. Lengths
    are chosen when packing (``Mixture.at_least``), where they are known in tokens.
    """

    modes: Annotated[tuple[str, ...], Length()] | None = None
    sources: Annotated[tuple[str, ...], Length()] | None = None
    max_pass_rate: Share | None = None
    keep_unknown: bool = False

    def reject(self, row: SftRow) -> str | None:
        """The first reason against this row, or None."""
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

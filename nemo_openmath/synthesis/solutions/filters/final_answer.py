r"""Where a solution states its final answer, and the cut behind it.

Models that were taught by LIMO end with ``**Final Answer**`` and ``\boxed{...}``, and may talk on. The words count in
any emphasis and case, as a heading or in a sentence, with the box at most 200 characters behind them, and only where
the box holds the solution's answer, the one that was graded: a box that the solution takes back is not its answer.
Of a solution that thinks, only the text behind the thinking is looked at. Code and what it printed are no text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import replace

from nemo_openmath.chat import Kind, Span, Transcript
from nemo_openmath.chat.transcript import PROSE
from nemo_openmath.grading import extract_answer
from nemo_openmath.grading.extraction import box_spans

_WORDS = re.compile(r"\bfinal\s{1,4}answer\b", re.IGNORECASE)
_DISTANCE = 200  # characters from the words to the box
_FORMULAS = ((r"\[", r"\]"), (r"\(", r"\)"), ("$$", "$$"), ("$", "$"))
_GAP = re.compile(r"[ \t]*[.,]?[ \t]*\n?[ \t]*")
_REST = re.compile(r"[*_]{0,3}[.!]?[*_]{0,3}")


def final_answer_end(transcript: Transcript, predicted: str | None) -> int | None:
    """Return where in ``transcript.text`` the first statement of the final answer ends, with the formula and the
    emphasis that it stands in; None where there is none. ``predicted``: the answer that was graded."""
    text = _visible(transcript)
    words = [match.end() for match in _WORDS.finditer(text)]
    boxes = box_spans(text) if words else []
    answers = {answer.strip() for answer in (predicted, extract_answer(transcript.said).answer) if answer is not None}
    for at in words:
        number = bisect_left(boxes, (at,))
        if number < len(boxes) and boxes[number][0] <= at + _DISTANCE:
            start, end = boxes[number]
            if text[start:end].strip() in answers:
                return _end_of_statement(text, start, end)
    return None


def cut_after_answer(transcript: Transcript, predicted: str | None) -> Transcript | None:
    """Return the transcript up to the end of its final answer; None where there is no final answer, or nothing behind
    it. The span that is cut has no token ids."""
    end = final_answer_end(transcript, predicted)
    if end is None or not transcript.text[end:].strip():
        return None
    spans: list[Span] = []
    for span in transcript.spans:
        if end <= 0:
            break
        spans.append(span if len(span.text) <= end else Span(span.author, span.text[:end]))
        end -= len(span.text)
    return replace(transcript, spans=tuple(spans))


def _visible(transcript: Transcript) -> str:
    """Return the text with line breaks in place of what is not the model's answer, so that places stay."""
    segments = transcript.segments()
    kinds = (Kind.SUMMARY,) if any(s.kind is Kind.SUMMARY for s in segments) else PROSE
    return "".join(s.text if s.kind in kinds else "\n" * len(s.text) for s in segments)


def _end_of_statement(text: str, start: int, end: int) -> int:
    """Return where a statement ends whose box holds ``text[start:end]``: behind its brace, and the end of its formula
    and emphasis."""
    end += text[end : end + 1] == "}"
    before = text[max(0, start - 2000) : start]
    gap = end + len(_GAP.match(text, end)[0])  # type: ignore[index]
    for opening, closing in _FORMULAS:
        if text.startswith(closing, gap) and _is_open(before, opening, closing):
            end = gap + len(closing)
            break
    return end + len(_REST.match(text, end)[0])  # type: ignore[index]


def _is_open(before: str, opening: str, closing: str) -> bool:
    if opening != closing:
        return before.rfind(opening) > before.rfind(closing)
    paragraph = before.rpartition("\n\n")[2] if opening == "$" else before
    return paragraph.count(opening) % 2 == 1

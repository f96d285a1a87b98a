"""A row that the reference pipeline generated becomes a Generation.

What a row says is kept, and what it does not say is taken from its text:

- **Who wrote what.** Code that was run stands in tags, or in ``python`` fences that an ``output`` fence follows
  directly. Fences become tags, and every output gets the notice of how many executions remain where it has none, as the
  tool's protocol is (``chat/blocks.py``). More outputs than the row says were run are the model's own words. A row
  is dropped where an output without a notice holds a fence, so that nobody can tell where it ends.
- **The prompt** is not in the row: it is this project's prompt of the mode, around the problem.
- **Why it ended**: ``finish_reason``. Older rows have none: one with an answer in a box was finished, any other was cut
  off.
- **Verdicts** are marked as foreign. A symbolic comparison that found no equality decides nothing: it is unknown, and a
  judge is asked.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nemo_openmath.chat import Author, Message, Span, Template, Transcript
from nemo_openmath.chat.blocks import budget_of, judgment_of, notice_block, output_block
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.records import Generation, Mode, Problem, content_id
from nemo_openmath.core.records.notes import Selection
from nemo_openmath.core.records.readers import name_of
from nemo_openmath.core.tags import CODE_END, CODE_START, THINK_END, THINK_START
from nemo_openmath.grading import extract_answer
from nemo_openmath.grading.judgement import parse_judgement

EXECUTIONS = ("num_code_executions", "code_rounds_executed")  # its name now, and what it was
_BUDGET = "total_code_executions"
_COMPARISON = "gen_rm_comparison"  # a judgment of GenSelect, before the reference extracted its choice
OF_GENERATIONS = frozenset(
    (
        "generation", "_full_generation", "reasoning_content", "predicted_answer", "symbolic_correct", "is_correct",
        "judgement", "judgment", "error", "finish_reason", "num_generated_tokens", "num_input_tokens",
        "generation_time", "generation_start_time", "generation_end_time", "code_execution_time",
        "stopped_on_repetition", "original_index", "_async_position", "interleaved_eval_single_time_s",
        "serialized_output", "conversation", "tokens", "logprobs", "majority_votes", "answer_rank",
        *EXECUTIONS, _BUDGET, _COMPARISON,
    )
)  # fmt: skip
"""Fields that say something of one generation and nothing of its problem."""
_COUNTS = (*EXECUTIONS, _BUDGET, "num_generated_tokens", "num_input_tokens", "max_idx")
_FLAGS = ("symbolic_correct", "is_correct", "stopped_on_repetition")
_FINISHES = {"stop": Finish.STOP, "eos": Finish.STOP, "length": Finish.LENGTH}
_FENCE = re.compile(r"^[ \t]*```(\w*)[ \t]*$", re.MULTILINE)

_ANY_FENCE = re.compile(r"```(\w*)[ \t]*$", re.MULTILINE)  # behind prose, too


@dataclass(frozen=True, slots=True)
class SolutionText:
    """What is to be kept of a row."""

    problem: Problem
    text: str
    mode: Mode

    def id_of(self, model: str, seed: int | None) -> str:
        """Return the id of its generation: the same from every file that holds it."""
        return content_id("generation", "read", self.problem.id, self.mode, model, seed, self.text)


def problem_of_row(row: dict[str, Any], mode: Mode | None = None) -> str | None:
    """Return what is wrong with a row, in words that name the field; None where nothing is. ``mode``: as in
    :func:`solution_of`."""
    if not isinstance(text := row.get("problem"), str) or not text.strip():
        if "problem" in row:
            return f"'problem' is {'empty' if isinstance(text, str) else name_of(text)}, not a text"
        return f"no 'problem'; the row has {', '.join(map(repr, list(row)[:12])) or 'no fields'}"
    if "generation" not in row and _COMPARISON not in row and "error" not in row:
        return "no 'generation': these are problems, which problems.read_problems reads"
    for name in ("generation", _COMPARISON, "judgement", "finish_reason"):
        if row.get(name) is not None and not isinstance(row[name], str):
            return f"{name!r} is {name_of(row[name])}, not a text"
    for name in ("expected_answer", "predicted_answer"):
        if isinstance(row.get(name), bool | list | dict):
            return f"{name!r} is {name_of(row[name])}; write it as a text"
    for name in _COUNTS:
        if _told(value := row.get(name)) and _count(value) is None:
            return f"{name!r} is {value!r:.40}, not a whole number of 0 or more"
    for name in _FLAGS:
        if _told(value := row.get(name)) and not isinstance(value, bool):
            return f"{name!r} is {value!r:.40}, not true or false"
    if mode is Mode.GENSELECT and (lacking := [name for name in ("solutions", "max_idx") if row.get(name) is None]):
        return f"no {lacking[0]!r}: this is no comparison, though `mode` says so"
    return None


def solution_of(row: dict[str, Any], mode: Mode | None) -> SolutionText | str:
    """Return the solution of a row, or why there is none. ``mode``: None where each row says it by itself."""
    text = text_of(row)
    if not text.strip():
        return "an error instead of a generation" if row.get("error") else "empty generation"
    problem = Problem.make(row["problem"], expected_answer=_answer(row.get("expected_answer")))
    return SolutionText(problem, text, mode or mode_of(row, text))


def text_of(row: dict[str, Any]) -> str:
    """Return the whole text of a turn, its reasoning included where a server gave that apart."""
    text = str(row.get("_full_generation") or row.get("generation") or row.get(_COMPARISON) or "")
    reasoning = row.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning.strip() and THINK_END not in text:
        behind = f"\n{THINK_END}\n\n{text}" if text.strip() else ""  # with nothing behind it, it may not have ended
        text = f"{THINK_START}\n{reasoning.strip()}{behind}"
    return text


def mode_of(row: dict[str, Any], text: str) -> Mode:
    """Return how a row was generated. One that counts executions was allowed to execute code, also where it did not."""
    if "max_idx" in row and "solutions" in row:
        return Mode.GENSELECT
    if CODE_START in text or any(name in row for name in (*EXECUTIONS, _BUDGET)):
        return Mode.TIR
    return Mode.TIR if _executed_fences(text, None) else Mode.COT


def generation_of(
    row: dict[str, Any],
    solution: SolutionText,
    templates: dict[Mode, Template],
    *,
    model: str,
    seed: int | None,
    budget: int,
) -> Generation | str:
    """Return the record of a row, or why there is none. ``budget``: executions that a solution with code was allowed,
    where neither row nor text says it."""
    problem, text, mode = solution.problem, solution.text, solution.mode
    foreign: dict[str, Any] = {"seed": seed}
    spans: tuple[Span, ...] = (Span(Author.MODEL, text),)
    allowed = None
    if mode is Mode.TIR:
        allowed = _integer(row.get(_BUDGET)) or budget_of(text) or budget
        spans = _authors(text, _executed(row), foreign)
        if _goes_on(spans):
            return "an output whose end is not known"
        spans = _with_notices(spans, allowed)
    messages = _messages(row, templates[mode], mode, allowed)
    finish = _finish(row, spans, foreign)
    transcript = Transcript(messages, spans, finished=finish is Finish.STOP).with_opening()
    predicted = row.get("predicted_answer")
    verdict, reason = _verdict(row, foreign)
    selection: dict[str, Any] = {}
    if mode is Mode.GENSELECT:
        predicted, verdict, reason, selection = _selection(row, problem, transcript, seed or 0)
    return Generation(
        id=solution.id_of(model, seed),
        parents=(problem.id,),
        problem_id=problem.id,
        mode=mode,
        model=model,
        sample=seed or 0,
        transcript=transcript.to_json(),
        thinks=transcript.thinks,
        finish=finish,
        expected_answer=problem.expected_answer,
        predicted_answer=_answer(predicted),
        verdict=verdict,
        verdict_reason=reason,
        prompt_tokens=_integer(row.get("num_input_tokens")) or 0,
        completion_tokens=_integer(row.get("num_generated_tokens")) or 0,
        code_calls=sum(span.author is Author.TOOL for span in spans),
        budget=allowed,
        extra={"source": row.get("problem_source") or "", "foreign": foreign} | selection,
    )


def _answer(value: Any) -> str | None:
    """Return an answer as a text; 0 is one."""
    return None if value is None or not str(value).strip() else str(value)


def _told(value: Any) -> bool:
    """Tell whether a field has a value. A table that lacks some writes them as NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _count(value: Any) -> int | None:
    """Return a count; None for what is none. A table that lacks some of a column writes the others as 3.0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value >= 0 and value != math.inf and value == int(value) else None


def _integer(value: Any) -> int | None:
    return _count(value) or None


def _executed(row: dict[str, Any]) -> int | None:
    """Return how many blocks of code were run, where the row says it."""
    return next((count for name in EXECUTIONS if (count := _count(row.get(name))) is not None), None)


def _authors(text: str, executed: int | None, foreign: dict[str, Any]) -> tuple[Span, ...]:
    """Return the spans of a solution with code, its fences rewritten to tags."""
    if CODE_START in text:
        return _as_executed(Transcript.from_text((), text).spans, executed)
    blocks = _executed_fences(text, executed)
    spans: list[Span] = []
    at = 0
    for block in blocks:
        code, output = text[block.code : block.close].strip("\n"), text[block.output : block.output_end]
        spans.append(Span(Author.MODEL, f"{text[at : block.start]}{CODE_START}\n{code}\n{CODE_END}"))
        spans.append(Span(Author.TOOL, output_block(output) + text[block.output_close : block.end].lstrip("\n")))
        at = block.end
    if blocks:
        foreign["tool_format"] = "fences"
    if at < len(text):
        spans.append(Span(Author.MODEL, text[at:]))
    return tuple(spans)


def _as_executed(spans: tuple[Span, ...], executed: int | None) -> tuple[Span, ...]:
    """Return the spans with no more outputs than were executed; the model made up the others."""
    ends = [number for number, span in enumerate(spans, 1) if span.author is Author.TOOL]
    if executed is None or len(ends) <= executed:
        return spans
    last = ends[executed - 1] if executed else 0
    return (*spans[:last], Span(Author.MODEL, "".join(span.text for span in spans[last:])))


def _goes_on(spans: tuple[Span, ...]) -> bool:
    """Tell whether an output seems to go on in the model's words: none says by a notice where it ended, and the first
    fence behind it, which names no language, opens nothing."""
    for span, behind in pairwise(spans):
        if span.author is Author.TOOL and "```system\n" not in span.text:
            languages = _ANY_FENCE.findall(behind.text.partition(CODE_START)[0])
            if len(languages) % 2 and not languages[0]:
                return True
    return False


@dataclass(frozen=True, slots=True)
class _Block:
    """Where a fence of code, its output and its notice stand in a text."""

    start: int
    code: int
    close: int
    output: int
    output_end: int
    output_close: int
    """Behind the line that ends the output."""
    end: int
    """Behind the notice, where there is one."""


def _executed_fences(text: str, executed: int | None) -> list[_Block]:
    """Return the Python fences of a text that a fence of output follows directly, at most ``executed`` of them."""
    fences = list(_FENCE.finditer(text)) if "```output" in text else []
    blocks: list[_Block] = []
    number = 0
    while number + 3 < len(fences) and len(blocks) != executed:
        opening, closing, output, output_end = fences[number : number + 4]
        called = opening[1].lower() in ("python", "py") and not closing[1] and output[1] == "output"
        if not called or text[closing.end() : output.start()].strip():
            number += 1
            continue
        last = _last_of_output(text, fences, number + 3)
        output_end = fences[last]
        if output_end[1]:
            number += 1
            continue
        number = last + 1
        output_close = end = min(output_end.end() + 1, len(text))
        if (
            number + 1 < len(fences)
            and fences[number][1] == "system"
            and not text[end : fences[number].start()].strip()
        ):
            end = min(fences[number + 1].end() + 1, len(text))
            number += 2
        blocks.append(
            _Block(
                opening.start(),
                opening.end() + 1,
                closing.start(),
                output.end() + 1,
                output_end.start(),
                output_close,
                end,
            )
        )
    return blocks


def _last_of_output(text: str, fences: list[re.Match[str]], first: int) -> int:
    """Return which fence ends an output, of those from ``first`` on: the one that a notice follows, if one does before
    the next program; else the first."""
    for number in range(first, len(fences) - 1):
        end, behind = fences[number : number + 2]
        if end[1].lower() in ("python", "py"):
            break
        if not end[1] and behind[1] == "system" and not text[end.end() : behind.start()].strip():
            return number
    return first


def _with_notices(spans: tuple[Span, ...], budget: int) -> tuple[Span, ...]:
    """Return the spans with a notice of the remaining executions behind every output."""
    noticed: list[Span] = []
    for span in spans:
        if span.author is Author.TOOL:
            budget -= 1
            if "```system\n" not in span.text:
                span = Span(
                    Author.TOOL, span.text + "\n" * (not span.text.endswith("\n")) + notice_block(max(0, budget))
                )
        noticed.append(span)
    return tuple(noticed)


def _messages(row: dict[str, Any], template: Template, mode: Mode, budget: int | None) -> tuple[Message, ...]:
    fields: dict[str, object] = {"problem": row["problem"]}
    if mode is Mode.TIR:
        fields["total_code_executions"] = budget
    elif mode is Mode.GENSELECT:
        last = _integer(row["max_idx"]) or 0
        fields |= {"solutions": row["solutions"], "max_idx": last, "num_solutions": last + 1}
    return template.messages(**fields)


def _finish(row: dict[str, Any], spans: tuple[Span, ...], foreign: dict[str, Any]) -> Finish:
    if row.get("stopped_on_repetition") is True:
        return Finish.REPETITION
    if (reason := row.get("finish_reason")) is not None:
        return _FINISHES.get(reason.lower(), Finish.CUT)
    foreign["finish"] = "assumed"
    transcript = Transcript((), spans)
    told = transcript.said.rpartition(THINK_END)[2] if transcript.thinks else transcript.said
    ended = THINK_START not in told and (extract_answer(told).answer is not None or judgment_of(told) is not None)
    return Finish.STOP if ended else Finish.LENGTH


def _verdict(row: dict[str, Any], foreign: dict[str, Any]) -> tuple[Verdict | None, str | None]:
    symbolic = next((row[name] for name in ("symbolic_correct", "is_correct") if isinstance(row.get(name), bool)), None)
    judged = parse_judgement(row["judgement"]) if row.get("judgement") else None
    if symbolic is not None:
        foreign["symbolic"] = symbolic
    if row.get("judgement"):
        foreign["judged"] = judged
        if judged is None:
            return Verdict.UNKNOWN, "foreign: a judgement that does not commit itself"
        return (Verdict.EQUAL if judged else Verdict.NOT_EQUAL), "foreign: judged"
    if symbolic is None:
        return None, None
    return (
        (Verdict.EQUAL, "foreign: symbolic") if symbolic else (Verdict.UNKNOWN, "foreign: symbolic found no equality")
    )


def _selection(
    row: dict[str, Any], problem: Problem, transcript: Transcript, seed: int
) -> tuple[str | None, Verdict, str, dict[str, Any]]:
    """Return answer, verdict, its reason and the ``extra`` of a comparison of solutions."""
    last = _integer(row["max_idx"]) or 0
    group = content_id("group", problem.id, row["solutions"])
    index = judgment_of(transcript.summary or "")
    if index is None or index > last:
        return None, Verdict.NOT_EQUAL, "no valid judgment", Selection(group, None, last + 1, seed).to_extra()
    label = row.get(f"label_{index}")
    right = {"Correct": Verdict.EQUAL, "Incorrect": Verdict.NOT_EQUAL}.get(str(label), Verdict.UNKNOWN)
    answer = row.get(f"predicted_answer_{index}")
    extra = Selection(group, f"{group}:{index}", last + 1, seed).to_extra()
    return None if answer is None else str(answer), right, "foreign: of the chosen candidate", extra

"""A row of a published data set -> an SftRow: the recipe's prompt, and a transcript that knows who wrote what.

Three kinds of rows are understood, told apart by their columns:

    problem, generated_solution, ...   nvidia/OpenMathReasoning: the prompt of the row's mode is put around the problem;
                                       in genselect the problem is the whole prompt already
    input, output                      the reference's SFT files: the input is the user's turn, or whole ChatML text
    transcript, problem_id, mode, ...  our own records, taken as they are

Whatever cannot be trained on is a :class:`Reject` with a reason that is counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from nemo_openmath.grading import extract_answer
from nemo_openmath.records.types import Problem, SftRow
from nemo_openmath.transcripts import Message, Template, Transcript, load_template
from nemo_openmath.transcripts.protocol import CODE_START, budget_of, judgment_of

MODES = ("cot", "tir", "genselect")
_TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>\n?", re.DOTALL)
_OPEN_TURN = "<|im_start|>assistant\n"
_END = "<|im_end|>"


class Reject(Exception):
    """A row that is not trained on: ``reason`` is counted, ``detail`` is an example for a reader."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail.encode(errors="replace").decode()


class Formatter:
    """Makes SftRows. ``mode``: what rows are that do not say so (a split's name); ``templates``: the user's own
    prompts instead of the shipped ones, by mode."""

    def __init__(self, mode: str | None = None, templates: Mapping[str, Template] | None = None):
        if mode is not None and mode not in MODES:
            raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")
        self.mode = mode
        self._templates = {name: load_template(name) for name in ("cot", "tir")} | dict(templates or {})

    def format(self, row: Mapping[str, Any]) -> SftRow:
        """Raises Reject."""
        if "transcript" in row:
            try:
                return own_row(dict(row))[0]
            except ValueError as error:
                raise Reject("not an SFT row", str(error)) from error
        if "generated_solution" in row:
            return self._published(row)
        if "input" in row and "output" in row:
            return self._reference(row)
        raise Reject("unknown columns", ", ".join(sorted(row)))

    def _published(self, row: Mapping[str, Any]) -> SftRow:
        problem, solution = _text(row, "problem"), _text(row, "generated_solution")
        mode = row.get("inference_mode") or self.mode or _guess(solution)
        if mode not in MODES:
            raise Reject("unknown inference mode", str(mode))
        if mode == "genselect":
            messages: tuple[Message, ...] = (Message("user", problem),)
        elif mode == "tir":
            budget = budget_of(solution)
            if budget is None:
                raise Reject("tir: no notice of remaining executions", solution[:200])
            messages = self._templates["tir"].messages(total_code_executions=budget, problem=problem)
        else:
            messages = self._templates["cot"].messages(problem=problem)
        return self._row(row, problem, mode, messages, solution, source=_label(row, "problem_source") or "")

    def _reference(self, row: Mapping[str, Any]) -> SftRow:
        prompt, answer = _text(row, "input"), _text(row, "output")
        if "<|im_start|>" in prompt:  # whole ChatML text up to where the assistant begins
            turns = prompt.removesuffix(_OPEN_TURN)
            messages = tuple(Message(m.group(1), m.group(2)) for m in _TURN.finditer(turns))
            if _TURN.sub("", turns).strip() or not messages:
                raise Reject("input is not whole ChatML turns", prompt[:200])
        else:
            messages = (Message("user", prompt),)
        mode = row.get("inference_mode") or self.mode or _guess(answer)
        if mode not in MODES:
            raise Reject("unknown inference mode", str(mode))
        problem = _label(row, "problem") or messages[-1].content
        return self._row(row, problem, mode, messages, answer.removesuffix("\n").removesuffix(_END))

    def _row(
        self,
        row: Mapping[str, Any],
        text: str,
        mode: str,
        messages: tuple[Message, ...],
        answer: str,
        source: str = "",
    ) -> SftRow:
        problem = Problem.make(text)
        return SftRow.make(
            problem,
            problem_id=problem.id,
            mode=mode,
            transcript=Transcript.from_text(messages, answer).to_json(),
            expected_answer=_label(row, "expected_answer"),
            problem_source=source,
            pass_rate=_rate(row.get("pass_rate_72b_tir")),
        )


def own_row(value: dict[str, Any]) -> tuple[SftRow, Transcript]:
    """A row of our own files and its transcript. Raises ValueError that says what is wrong."""
    row = SftRow.from_json(value)
    for name in ("id", "problem_id", "mode", "problem_source"):
        if not isinstance(getattr(row, name), str):
            raise ValueError(f"{name} is not text")
    if not isinstance(row.pass_rate, float | int | None):
        raise ValueError("pass_rate is not a number")
    try:
        transcript = Transcript.from_json(row.transcript)
        texts = [*(t for m in transcript.messages for t in (m.role, m.content)), *(p.text for p in transcript.pieces)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("transcript: a text is not text")
    except KeyError as error:
        raise ValueError(f"transcript: no field {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"transcript: {error}") from error
    return row, transcript


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise Reject(f"no {column}")
    return _unicode(value, column)


def _label(row: Mapping[str, Any], column: str) -> str | None:
    """A short text, or a number in its place; None where there is none."""
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and math.isnan(value)):
        return None  # NaN is what pandas writes for nothing
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise Reject(f"{column} is not text", repr(value)[:200])
    return _unicode(str(value), column)


def _unicode(text: str, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Reject(f"{column} is not valid Unicode", str(error)) from error
    return text


def _guess(answer: str) -> str:
    """The mode that a row's own text shows: code was run, a judgment was given, or neither."""
    if CODE_START in answer:
        return "tir"
    return "genselect" if judgment_of(answer) is not None and extract_answer(answer).answer is None else "cot"


def _rate(value: Any) -> float | None:
    """Pass rate in [0, 1]; None for "n/a" and whatever else is no number."""
    try:
        rate = float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return rate if 0 <= rate <= 1 else None

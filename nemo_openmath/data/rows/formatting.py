"""A row of a published data set becomes an SftRow: the recipe's prompt, and a transcript that knows who wrote what.

Three kinds of rows are understood; their columns tell them apart:

    problem, generated_solution, ...   nvidia/OpenMathReasoning: the prompt of the row's mode is put around the problem;
                                       in genselect the problem is the whole prompt already
    input, output                      the reference's SFT files: the input is the user's turn, or a rendered prompt
    transcript, problem_id, mode, ...  our own records, taken as they are

An input is a rendered prompt where it begins with the sign that a chat format begins with and ends with the one that
opens the assistant's turn (``_FORMATS``), perhaps with ``<think>`` behind it. Such an input is not rendered again: its
control tokens are tokens. Whole ChatML turns that open no turn of the assistant are read as turns. An input that begins
with such a sign and is neither is a reject. Signs elsewhere in an input are text, as they are in a problem.

A solution that ends in an end-of-text token gets no second one. Thinking that ends without having begun gets its
``<think>`` (``chat/transcript.py``). A row that cannot be trained on is a :class:`Reject`; its reason is counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from nemo_openmath.chat import RENDERED, Message, Template, Transcript, load_template
from nemo_openmath.chat.blocks import budget_of, judgment_of
from nemo_openmath.chat.tokenizer import strip_end
from nemo_openmath.core.records import Mode, exact_json
from nemo_openmath.core.records.types import Problem, SftRow
from nemo_openmath.core.tags import CODE_START
from nemo_openmath.grading import extract_answer

MODES = {str(mode): mode for mode in (Mode.COT, Mode.TIR, Mode.GENSELECT)}
"""What rows may be, by the name that stands in files."""
_SIGN = r"<\|[^\s<|>]{1,40}\|?>"
TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>\n?", re.DOTALL)
# Chat formats: (how a prompt begins, how it opens the assistant's turn), as the families' templates write them.
_FORMATS = [
    (re.compile(begin), re.compile(opened + r"(?:<think>\s*(?:</think>\s*)?)?\Z"))
    for begin, opened in (
        (r"<\|im_start\|>", r"<\|im_start\|>assistant(?:\n|<\|im_sep\|>)"),  # Qwen, SmolLM, OLMo, Phi 4
        (r"<\|start_header_id\|>", r"<\|start_header_id\|>assistant<\|end_header_id\|>\s*"),  # Llama 3
        (r"\[INST\]", r"\[/INST\]\s*"),  # Llama 2, Mistral
        (r"\[SYSTEM_PROMPT\]", r"\[/INST\]\s*"),
        (r"<start_of_turn>", r"<start_of_turn>model\n"),  # Gemma
        (r"<｜User｜>|<｜begin▁of▁sentence｜>", r"<｜Assistant｜>\s*"),  # DeepSeek
        (r"<\|(?:user|system)\|>", r"<\|assistant\|>\s*"),  # Phi, Zephyr, Tulu, GLM
        (r"<\|start_of_role\|>", r"<\|start_of_role\|>assistant<\|end_of_role\|>\s*"),  # Granite
        (r"<\|START_OFTURN_TOKEN\|>", r"<\|CHATBOT_TOKEN\|>(?:<\|START_RESPONSE\|>)?\s*"),  # Command R
        # Any other format whose signs look like these (gpt-oss, Llama 4, Kimi, Gemma 4),
        (rf"(?!<\|im_start\|>){_SIGN}", rf"(?:{_SIGN}(?:assistant|model)(?:{_SIGN})?|<\|[^\s<|>]*assistant\|>)\s*"),
    )
]
# and those of words alone (Alpaca, Vicuna): a turn of the user, and at the end one of the assistant.
_WORDS = (
    re.compile(r"^(?:### ?)?(?:Instruction|Human|User):|\bUSER:", re.MULTILINE),
    re.compile(r"(?:^(?:### ?(?:Response|Assistant)|Assistant)|\bASSISTANT):\Z"),
)
_FIRST = re.compile(r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<BOS_TOKEN>|<\|endoftext\|>|\[gMASK\]<sop>)?\s*")
_ENDS = (
    *("<|eot|>", "<|eom_id|>", "<|return|>", "<turn|>", "<|end_of_turn|>", "<|endofturn|>"),
    *("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "</s>", "<end_of_turn>", "<eos>", "<|end|>"),
    *("<｜end▁of▁sentence｜>", "<|END_OFTURN_TOKEN|>"),
)


NOT_TEXT = " is not text"  # ends the reason of a value of another type


class Reject(Exception):
    """A row that is not trained on: ``reason`` is counted, ``detail`` is an example for a reader."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail.encode(errors="replace").decode()


class Formatter:
    """Makes SftRows of raw rows.

    ``mode``: what rows are that do not say so, as a split's name may. ``templates``: the user's own prompts instead of
    the shipped ones, by mode.
    """

    def __init__(self, mode: str | None = None, templates: Mapping[str, Template] | None = None):
        if mode is not None and mode not in MODES:
            raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")
        self.mode = mode
        self._templates = {name: load_template(name) for name in ("cot", "tir")} | dict(templates or {})

    def format(self, row: Mapping[str, Any]) -> SftRow:
        """Return the SftRow of a raw row (column -> value). Raises Reject."""
        return self.format_with_transcript(row)[0]

    def format_with_transcript(self, row: Mapping[str, Any]) -> tuple[SftRow, Transcript]:
        """Return what :meth:`format` returns, and its transcript."""
        if "transcript" in row:
            try:
                return own_row(dict(row))
            except ValueError as error:
                raise Reject("not an SFT row", str(error)) from error
        if "generated_solution" in row:
            return self._published(row)
        if "input" in row and "output" in row:
            return self._reference(row)
        raise Reject("unknown columns", ", ".join(sorted(row)))

    def _published(self, row: Mapping[str, Any]) -> tuple[SftRow, Transcript]:
        problem, solution = text_of(row, "problem"), text_of(row, "generated_solution")
        mode = self._mode(row, solution)
        if mode is Mode.GENSELECT:
            messages: tuple[Message, ...] = (Message("user", problem),)
        elif mode is Mode.TIR:
            template, budget = self._templates["tir"], budget_of(solution)
            if budget is None and template.has("total_code_executions"):
                raise Reject("tir: no notice of remaining executions", solution[:200])
            messages = template.messages(total_code_executions=budget, problem=problem)
        else:
            messages = self._templates["cot"].messages(problem=problem)
        return self._row(row, problem, mode, messages, solution, source=_label(row, "problem_source") or "")

    def _reference(self, row: Mapping[str, Any]) -> tuple[SftRow, Transcript]:
        prompt, answer = text_of(row, "input"), text_of(row, "output")
        messages = messages_of(prompt)
        mode = self._mode(row, answer)
        turns = [text for role, text in TURN.findall(prompt) if role == "user"] if _is_rendered(messages) else []
        problem = _label(row, "problem") or (turns[-1] if turns else messages[-1].content)
        return self._row(row, problem, mode, messages, answer)

    def _mode(self, row: Mapping[str, Any], answer: str) -> Mode:
        """Return what the row says that it is, else what all rows are, else what its text shows. Raises Reject."""
        name = row.get("inference_mode") or self.mode or guess_mode(answer)
        if not isinstance(name, str) or name not in MODES:
            raise Reject("unknown inference mode", str(name))
        return MODES[name]

    def _row(
        self,
        row: Mapping[str, Any],
        text: str,
        mode: Mode,
        messages: tuple[Message, ...],
        answer: str,
        source: str = "",
    ) -> tuple[SftRow, Transcript]:
        problem = Problem.make(text)
        transcript = Transcript.from_text(messages, strip_end(answer, _ENDS)[0]).with_opening()
        sft_row = SftRow.make(
            problem,
            problem_id=problem.id,
            mode=mode,
            transcript=transcript.to_json(),
            expected_answer=_label(row, "expected_answer"),
            problem_source=source,
            pass_rate=pass_rate_of(row.get("pass_rate_72b_tir")),
        )
        return sft_row, transcript


def messages_of(prompt: str) -> tuple[Message, ...]:
    """Return the user's turn, a rendered prompt, or turns; the module's docstring tells them apart. Raises Reject."""
    start = _FIRST.match(prompt)
    body = prompt[start.end() :] if start else prompt
    if not any(begin.match(body) for begin, _ in _FORMATS):
        users, opened = _WORDS
        words = opened.search(prompt.rstrip().rpartition("\n")[2]) and users.search(body)
        return (Message(RENDERED if words else "user", prompt),)
    if any(begin.match(body) and opened.search(body) for begin, opened in _FORMATS):
        return (Message(RENDERED, prompt),)
    if (turns := TURN.findall(body)) and not TURN.sub("", body).strip():
        return tuple(Message(role, text) for role, text in turns)
    raise Reject("input begins like a rendered prompt and opens no turn of the assistant", prompt[:200])


def _is_rendered(messages: tuple[Message, ...]) -> bool:
    return [m.role for m in messages] == [RENDERED]


def own_row(value: dict[str, Any]) -> tuple[SftRow, Transcript]:
    """Return a row of our own files, and its transcript. Raises a ValueError that says what is wrong."""
    if isinstance(extra := value.get("extra"), str):  # as it stands in Parquet (data/records/export.py)
        value = value | {"extra": exact_json.loads(extra.encode())}
    row = SftRow.from_json(value)
    if not isinstance(row.extra, dict):
        raise ValueError("extra is not an object")
    for name in ("id", "problem_id", "problem_source"):
        if not isinstance(getattr(row, name), str):
            raise ValueError(f"{name} is not text")
    if not isinstance(row.pass_rate, float | int | None):
        raise ValueError("pass_rate is not a number")
    try:
        transcript = Transcript.from_json(row.transcript)
        texts = [*(t for m in transcript.messages for t in (m.role, m.content)), *(p.text for p in transcript.spans)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("transcript: a text is not text")
    except KeyError as error:
        raise ValueError(f"transcript: no field {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"transcript: {error}") from error
    return row, transcript


def text_of(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Reject(f"no {column}")
    if not isinstance(value, str):
        raise Reject(f"{column}{NOT_TEXT}", repr(value)[:200])
    return _unicode(value, column)


def _label(row: Mapping[str, Any], column: str) -> str | None:
    """Return a short text, or a number in its place, as text; None where there is none. Raises Reject."""
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and math.isnan(value)):
        return None  # NaN is what pandas writes for nothing
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise Reject(f"{column}{NOT_TEXT}", repr(value)[:200])
    return _unicode(str(value), column)


def _unicode(text: str, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Reject(f"{column} is not valid Unicode", str(error)) from error
    return text


def guess_mode(answer: str) -> Mode:
    """Return the mode that a row's own text shows: code was run, a judgment was given, or neither."""
    if CODE_START in answer:
        return Mode.TIR
    return Mode.GENSELECT if judgment_of(answer) is not None and extract_answer(answer).answer is None else Mode.COT


def pass_rate_of(value: Any) -> float | None:
    """Return a pass rate in [0, 1]; None for "n/a" and whatever else is no such number."""
    try:
        rate = float(value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return rate if 0 <= rate <= 1 else None

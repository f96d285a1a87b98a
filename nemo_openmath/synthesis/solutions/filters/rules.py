"""The rules of ``solutions.filter``: each a function of a solution and the settings, with its reasons."""

from __future__ import annotations

from nemo_openmath.chat import Kind
from nemo_openmath.chat.blocks import budget_of
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.grader import Verdict
from nemo_openmath.core.tags import CODE_END
from nemo_openmath.grading import extract_answer
from nemo_openmath.synthesis.solutions.filters.early_answer import states_answer
from nemo_openmath.synthesis.solutions.filters.final_answer import final_answer_end
from nemo_openmath.synthesis.solutions.filters.rule import RuleSettings, Solution, rule
from nemo_openmath.synthesis.solutions.fragments import is_error

_OVER_BUDGET = "over the code budget"
_ENDINGS = {
    Finish.BUDGET: _OVER_BUDGET,
    Finish.REPETITION: "repeats itself",
    Finish.CONTEXT: "prompt longer than the context",
    Finish.REFUSED: "refused by the engine",
    Finish.INVENTED: "invented output",
}


@rule("finished", *_ENDINGS.values(), "unfinished (...)")
def finished(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop what the model did not end by itself."""
    ending = solution.generation.finish
    return None if solution.generation.finished else _ENDINGS.get(ending, f"unfinished ({ending})")


@rule("answer", "no boxed answer")
def answer(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop what has no boxed answer."""
    return "no boxed answer" if solution.generation.predicted_answer is None else None


@rule("correct", "wrong answer", "verdict ...")
def correct(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop what was not judged equal to the expected answer."""
    if solution.generation.correct:
        return None
    verdict = solution.generation.verdict
    return "wrong answer" if verdict is Verdict.NOT_EQUAL else f"verdict {verdict}"


@rule("length", "too long", "length not known")
def length(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop what is longer than ``max_tokens``, or does not say how many tokens it has."""
    if not (most := settings.config.max_tokens):
        return None
    tokens = solution.generation.completion_tokens  # 0: its file, or the server, did not say it
    return "length not known" if not tokens else "too long" if tokens > most else None


@rule("thinking", "no summary after the reasoning", "think tags out of order")
def thinking(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop thinking that is not one <think> ... </think> with a text behind it; see ``think``. A model that writes no
    such tags at all is taken as it is."""
    thinks = solution.transcript.thinking
    if thinks == "broken":
        return "no summary after the reasoning" if solution.transcript.summary is None else "think tags out of order"
    required = (
        settings.config.think == "required"
        or (solution.generation.model, solution.generation.mode) in settings.thinkers
    )
    return "no summary after the reasoning" if thinks == "none" and required else None


@rule("code", "no code was run", "its code was not called", only_tir=True)
def code(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop a TIR solution that ran no code."""
    if solution.code_calls:
        return None
    return "its code was not called" if solution.transcript.has_uncalled_code else "no code was run"


@rule("uncalled_code", "a code block was not run", "some of its code was not called", only_tir=True)
def uncalled_code(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop a TIR solution with a block of code that never ended or has no output, or with Python in a fence that
    nothing ran. A fence that shows code which was called is none."""
    segments = solution.transcript.segments()
    for number, segment in enumerate(segments):
        behind = segments[number + 1].kind if number + 1 < len(segments) else None
        if segment.kind is Kind.CODE and not (segment.text.endswith(CODE_END) and behind is Kind.OUTPUT):
            return "a code block was not run"
    called = {_plain(block) for block in solution.transcript.code_blocks()}
    if any(fence.is_python and _plain(fence.body) not in called for fence in solution.fences):
        return "some of its code was not called"
    return None


@rule("blocks", "too many code blocks", only_tir=True)
def blocks(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop a TIR solution with more blocks of code than ``max_blocks``."""
    most = settings.config.max_blocks
    return "too many code blocks" if most and solution.code_calls > most else None


@rule("over_budget", _OVER_BUDGET, only_tir=True)
def over_budget(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop a TIR solution that called more code than its prompt allowed, or than its notices say."""
    if solution.generation.finish is Finish.BUDGET:
        return _OVER_BUDGET
    budget = solution.generation.budget
    if budget is None:
        budget = budget_of(solution.printed)
    return _OVER_BUDGET if budget is not None and len(solution.transcript.code_blocks()) > budget else None


@rule("box_before_code", "answer before the first code", only_tir=True)
def box_before_code(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop a TIR solution that boxes an answer before its first block of code."""
    boxed = solution.code_calls and extract_answer(solution.before_code).boxes
    return "answer before the first code" if boxed else None


@rule("answer_before_code", "predicted answer before the first code", only_tir=True)
def answer_before_code(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop a TIR solution whose answer stands before its first block of code: the code then only checks it. What
    counts as the answer, and what does not ("Step 3", 13, numbers of the problem), early_answer.py says."""
    predicted = solution.generation.predicted_answer
    if not solution.code_calls or predicted is None:
        return None
    early = states_answer(solution.before_code, predicted, solution.problem)
    return "predicted answer before the first code" if early else None


@rule("final_answer", "no final answer")
def final_answer(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop a solution without the words "Final Answer" and its answer in a box behind them."""
    end = final_answer_end(solution.transcript, solution.generation.predicted_answer)
    return "no final answer" if end is None else None


@rule("invented_output", "invented output")
def invented_output(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop a solution in which the model itself wrote what only a program may: a fence of output or of notices, or one
    behind words such as "Output:" or "This prints:". A fence behind such words that shows what a program did print is
    none."""
    for fence in solution.fences:
        if fence.is_tool or (fence.shows_output and fence.body.strip() not in solution.printed):
            return "invented output"
    return None


@rule("code_errors", "a code block failed", only_tir=True)
def code_errors(solution: Solution, settings: RuleSettings) -> str | None:
    """Drop a TIR solution of which a block of code ended in an error."""
    failed = any(s.kind is Kind.OUTPUT and is_error(s.text) for s in solution.transcript.segments())
    return "a code block failed" if failed else None


def _plain(code: str) -> str:
    return "\n".join(line.rstrip() for line in code.strip().splitlines())

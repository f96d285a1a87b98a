"""How often the stand-in teacher errs, by task. Shares of requests, drawn anew for every request from its seed."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_openmath.core.bounds import Share


@dataclass(frozen=True)
class TeacherConfig:
    """How often the stand-in teacher errs, by task. Every rate is a probability."""

    extract_error: Share = 0.02
    """Share of posts of which a problem is left out or cut."""
    classify_error: Share = 0.005
    """Share of wrong verdicts on a problem's kind. Each of the questions (proof, multiple choice, yes or no, invalid)
    errs so often."""
    convert_error: Share = 0.05
    """Share of converted proofs that get a wrong answer."""
    answer_error: Share = 0.03
    """Share of threads from which another answer that is given there, or "Not found", is read."""
    decontaminate_error: Share = 0.01
    """Share of pairs of problems that are compared wrongly."""
    judge_error: Share = 0.01
    """Share of pairs of answers that are judged wrongly."""
    novelty_error: Share = 0.01
    """Share of votes on a program, whether it is new and how much work it saves, that are not what the rest say."""
    summarize_error: Share = 0.1
    """Share of summaries that end with another answer."""
    genselect_error: Share = 0.15
    """Share of selections that choose without looking."""
    cot_error: Share = 0.1
    """Share of wrong solutions by hand, of problems that can be done in the head."""
    cot_error_hard: Share = 0.6
    """Share of wrong solutions by hand, of problems that cannot."""
    no_code: Share = 0.06
    """Share of tool-integrated solutions without code."""
    wrong_code: Share = 0.12
    """Share of programs that compute something else."""
    broken_code: Share = 0.06
    """Share of programs that do not run."""
    ignored_output: Share = 0.04
    """Share of solutions whose answer is not what their program printed."""
    over_budget: Share = 0.02
    """Share of solutions that write code though no execution is left."""
    unfinished: Share = 0.02
    """Share of solutions that talk on until the token limit."""
    staged: Share = 0.6
    """Share of solutions with several programs, where the problem has a natural first step."""
    reworded_code: Share = 0.15
    """Share of programs that compute the same, written in another way."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not between 0 and 1")

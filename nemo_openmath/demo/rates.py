"""How often the stand-in teacher errs, by task. Shares of requests, drawn anew for every request from its seed."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_openmath.core.bounds import Share


@dataclass(frozen=True)
class TeacherConfig:
    """Every rate is a probability between 0 and 1."""

    extract_error: Share = 0.02  # a problem is left out or cut
    classify_error: Share = 0.02
    convert_error: Share = 0.05  # a converted proof gets a wrong answer
    answer_error: Share = 0.03  # a wrong answer, or "Not found", is read from the replies
    decontaminate_error: Share = 0.01
    judge_error: Share = 0.01
    summarize_error: Share = 0.1  # the summary ends with another answer
    genselect_error: Share = 0.15  # chooses without looking
    cot_error: Share = 0.1  # by hand, on what can be done in the head
    cot_error_hard: Share = 0.6  # by hand, on what cannot
    no_code: Share = 0.06  # a tool-integrated solution without code
    wrong_code: Share = 0.12  # a program that computes something else
    broken_code: Share = 0.06  # a program that does not run
    ignored_output: Share = 0.04  # the output is not what the answer says
    over_budget: Share = 0.02  # code is written though none is left
    unfinished: Share = 0.02  # talks on until the token limit
    staged: Share = 0.6  # several programs, where the problem has a natural first step
    reworded_code: Share = 0.15  # the same computation, written in another way

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not between 0 and 1")

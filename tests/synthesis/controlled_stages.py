"""The stages that ask a model about problems, each with units of the tiny world: for the tests of planted cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemo_openmath.core.records import Generation, Problem, Thread
from nemo_openmath.core.stage import Stage
from nemo_openmath.demo.world import make_benchmark, make_problems
from nemo_openmath.synthesis.judge.stage import JudgeAnswers, JudgeConfig
from nemo_openmath.synthesis.problems.answers import ExtractAnswers, ExtractAnswersConfig
from nemo_openmath.synthesis.problems.classify import Classify, ClassifyConfig
from nemo_openmath.synthesis.problems.convert import ConvertProofs
from nemo_openmath.synthesis.problems.decontaminate import Decontaminate, DecontaminateConfig
from nemo_openmath.synthesis.problems.extract import Extract
from nemo_openmath.synthesis.problems.prompted import DiscussedConfig, OnePromptConfig

UNITS = 80
ITEMS = make_problems(1, UNITS, pool="train")
PROBLEMS = [Problem.make(item.statement) for item in ITEMS]
BENCHMARK = [Problem.make(item.statement) for item in make_benchmark(1, 12)]
THREADS = [Thread.make(item.statement, f"Post 1:\nI get {item.answer}.") for item in ITEMS]


def generation(problem: Problem) -> Generation:
    return Generation(
        id=f"g-{problem.id}", problem_id=problem.id, mode="cot", model="m", sample=0, transcript={}, finish="stop",
        expected_answer="7", predicted_answer="8", verdict="unknown",
    )  # fmt: skip


Inputs = dict[str, list[Any]]
STAGES: dict[str, tuple[Callable[[Any], Stage], type, Inputs]] = {
    "problems.extract": (Extract, OnePromptConfig, {"threads": THREADS}),
    "problems.classify": (Classify, ClassifyConfig, {"problems": PROBLEMS}),
    "problems.convert_proofs": (
        ConvertProofs,
        DiscussedConfig,
        {"problems": [p.with_(category="proof") for p in PROBLEMS], "threads": []},
    ),
    "problems.extract_answers": (
        ExtractAnswers,
        ExtractAnswersConfig,
        {"problems": [p.with_(parents=(t.id,)) for p, t in zip(PROBLEMS, THREADS, strict=True)], "threads": THREADS},
    ),
    "problems.decontaminate": (
        Decontaminate,
        DecontaminateConfig,
        {"problems": PROBLEMS, "benchmark": BENCHMARK},
    ),
    "judging.judge": (
        JudgeAnswers,
        JudgeConfig,
        {"generations": [generation(p) for p in PROBLEMS], "problems": PROBLEMS},
    ),
}

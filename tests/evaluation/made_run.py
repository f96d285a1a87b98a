"""A made-up run with everything that a report shows; `python -m tests.evaluation.made_run FOLDER` reports."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.core.records import Generation, Manifest
from nemo_openmath.evaluation import Pair, ProblemScores, paired_difference, score, summarise
from nemo_openmath.evaluation.reports import ConfigValue, Example, Funnel, RunView, StageView

TIR = """<think>
Let us count the numbers below 200 that leave remainder 3 when divided by 7.
<tool_call>
count = sum(1 for n in range(200) if n % 7 == 3)
print(count < 30, count)
</tool_call>

```output
True 29
```
```system
Remaining code executions: 2. You will not be able to call code when you run out of executions, so use it \
wisely. Note that you can still continue solving the problem without code after that.
```
The first is 3 and the last 199 = 3 + 7 * 28, so there are 29.
</think>
There are 29 such numbers: 3, 10, ..., 199.

The answer is \\boxed{29}."""
SKILL = {("base", "cot"): 0.12, ("base", "tir"): 0.06, ("iteration1", "cot"): 0.2, ("iteration1", "tir"): 0.44}
SKILL |= {("iteration2", "cot"): 0.2, ("iteration2", "tir"): 0.52}


def made_scores(checkpoint: str, problems: int = 60, samples: int = 16) -> list[ProblemScores]:
    """Scores of a made-up model: harder problems are solved less often; GenSelect is a little above the vote."""
    rng = random.Random(checkpoint)
    generations: list[Generation] = []
    for mode in ("cot", "tir", "genselect"):
        for i in range(problems):
            chance = SKILL[checkpoint, "tir" if mode == "genselect" else mode] ** (0.3 + 2.4 * (i % 10) / 10)
            for s in range(samples if mode != "genselect" else 12):
                k = (4, 8, 16)[s % 3]
                right = rng.random() < (chance if mode != "genselect" else chance**0.5)
                lost = rng.random() < 0.05
                generations.append(
                    Generation(
                        id=f"{checkpoint}-{mode}-{i}-{s}",
                        problem_id=f"problem-{i:03d}",
                        mode=mode,
                        model=checkpoint,
                        sample=s,
                        transcript={},
                        finish="length" if lost else "stop",
                        predicted_answer=None if lost else "1" if right else str(rng.randint(2, 9)),
                        verdict="equal" if right and not lost else "not_equal",
                        completion_tokens=rng.randint(80, 400),
                        code_calls=rng.randint(1, 3) if mode == "tir" else 0,
                        extra={"k": k, "chosen": "x", "group": "g", "round": s // 3} if mode == "genselect" else {},
                    )
                )
    return score(generations, ks=[1, 2, 4, 8, 16], seed=0).problems


def made_run(folder: Path, problems: int = 60) -> RunView:
    folder.mkdir(parents=True, exist_ok=True)
    scores = {label: made_scores(label, problems) for label in ("base", "iteration1", "iteration2")}
    results = [{"checkpoint": label, **asdict(row)} for label, rows in scores.items() for row in summarise(rows)]
    pairs = [("base", "iteration1", "tir pass@1"), ("iteration1", "iteration2", "tir pass@1")]
    pairs += [("base", "iteration1", "cot pass@1"), ("iteration2", "iteration2", "cot pass@1 -> tir pass@1")]
    pairs += [
        ("iteration2", "iteration2", "tir maj@16 -> genselect genselect@16"),
        ("iteration1", "base", "tir pass@16"),
    ]
    pairs += [("base", "iteration2", "tir pass@1"), ("base", "iteration1", "tir tokens")]
    paired = [
        asdict(paired_difference(scores[a], scores[b], Pair.parse(p), checkpoint_before=a, checkpoint_after=b))
        for a, b, p in pairs
    ]
    training = {}
    for name, first, last in (("train-iteration1", 4.1, 0.62), ("train-iteration2", 0.8, 0.48)):
        training[name] = folder / f"{name}.jsonl"
        training[name].write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in _curve(first, last)))
    return RunView(
        label="Whole recipe in miniature",
        stages=_stages(),
        results=results,
        paired=paired,
        funnel=[
            Funnel(
                "Problems after each step",
                [
                    ("forum threads", 400),
                    ("extracted problems", 512),
                    ("without bad ones", 431),
                    ("decontaminated", 402),
                ],
                note="A thread may hold several problems, or none.",
            ),
            Funnel(
                "Problem types",
                [("answer extracted", 260), ("no answer extracted", 102), ("converted proof", 40)],
                True,
            ),
        ],
        training=training,
        examples=[_example()],
        seeds={"recipe": 0, "world": 17},
        config=[
            ConfigValue("seed", 0, "default"),
            ConfigValue("teacher.url", "http://127.0.0.1:8000/v1", "examples/tiny.yaml:12"),
            ConfigValue("teacher.model", "teacher", "examples/tiny.yaml:13"),
            ConfigValue("training.lr", 3e-3, "override"),
            ConfigValue("training.betas", [0.9, 0.98], "default"),
            ConfigValue("training.tokens_per_batch", 16384, "examples/tiny.yaml:41"),
        ],
        versions={"python": "3.11.7", "torch": "2.13.0", "megatron-core": "0.16.1"},
        standins=[
            "The teacher is a program that plays the large language model, with errors at a stated rate; "
            "set teacher.url to use a real one.",
            "The student has 1.6 million parameters.",
        ],
    )


def _curve(first: float, last: float) -> list[dict[str, Any]]:
    rng = random.Random(first)
    return [
        {
            "step": step,
            "loss": last + (first - last) * math.exp(-step / 45) + rng.gauss(0, 0.05),
            "grad_norm": 0.4 + 2 * math.exp(-step / 20) + rng.random() * 0.2,
            "lr": 3e-3 * (step / 24 if step < 24 else 0.5 + 0.5 * math.cos(math.pi * (step - 24) / 216)),
            "tokens": 16384,
            "trained_tokens": 9800,
            "seconds": 0.25,
        }
        for step in range(1, 241)
    ]


def _stages() -> list[StageView]:
    def stage(name: str, units: int, records: int, seconds: float, drops: dict[str, str] | None = None) -> StageView:
        drops = drops or {}
        counts = {reason: 3 + 7 * i for i, reason in enumerate(drops)}
        manifest = Manifest(name, "f", "d", {"units": units, "records": records}, counts, seconds=seconds)
        return StageView(name, "finished", name, manifest, units, drops)

    return [
        stage("forum", 400, 400, 0.4),
        stage("extract", 400, 512, 8.2, {"no problem in the post": "Has anyone read the book by Engel? Is it good?"}),
        stage(
            "classify",
            512,
            431,
            9.1,
            {
                "multiple choice": "Which is larger? (A) 2^30 (B) 3^20 (C) they are equal",
                "yes or no": "Is 2027 prime?",
                "invalid": "<script>alert('not run')</script> find x & y",
            },
        ),
        stage(
            "decontaminate", 431, 402, 1.4, {"like a benchmark problem": "How many n < 500 leave remainder 3 mod 7?"}
        ),
        stage("tir-solutions", 3216, 2100, 64.0, {"wrong answer": "28 instead of 29", "over budget": "3 blocks of 2"}),
        stage("train-iteration1", 1, 0, 61.5),
        stage("evaluate-iteration1", 7680, 7680, 88.0),
        StageView("train-iteration2", "waiting"),
    ]


def _example() -> Example:
    from nemo_openmath.chat import Message, Transcript

    prompt = "How many of the numbers 0, 1, ..., 199 leave remainder 3 when divided by 7?"
    transcript = Transcript.from_text((Message("user", prompt),), TIR).to_json()
    return Example("Iteration 2 on a held-out problem", transcript, "29", "29", "equal")


if __name__ == "__main__":
    from nemo_openmath.evaluation.reports import build_report

    target = Path(sys.argv[1])
    print(build_report(made_run(target, problems=200), target))

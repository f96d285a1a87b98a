"""Our metrics against the reference pipeline's (nemo_skills/evaluation/metrics/base.py), on rows of its own shape.

Its definitions, in our words. Of a problem with n samples in their order:

- ``pass@1[avg-of-k]``: the share of right ones among the first k.
- ``pass@k``: the chance that one of k of all n samples is right.
- ``majority@k``: of the first k, answers that are no text are left out; equal texts with equal verdicts are one group;
  the mean of the verdicts of the largest groups; 0 where there is none.

Ours take the mean over all ways to choose k of the n samples, so that no sample is left out and their order says
nothing. At k = n they are the same where equal answers are equal texts; below, ours is the mean of theirs over the
choices.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean

import orjson
import pytest

from nemo_openmath.core.records import Generation, read_records
from nemo_openmath.evaluation.metrics import evaluate
from nemo_openmath.synthesis.solutions.read_generations import ReadGenerations, ReadGenerationsConfig
from tests.support.services import run_stage

SAMPLES, PROBLEMS = 6, 12
Sample = tuple[str | None, bool]


def reference_majority(samples: Sequence[Sample]) -> float:
    groups = Counter(sample for sample in samples if sample[0] is not None)
    if not groups:
        return 0.0
    most = max(groups.values())
    return mean(float(right) for (_, right), count in groups.items() if count == most)


def reference_rows() -> dict[str, list[Sample]]:
    """Answers of each problem; some samples have none. Right is what equals the expected answer, 1."""
    rng = random.Random(3)
    drawn: dict[str, list[Sample]] = {}
    for number in range(PROBLEMS):
        answers = [rng.choice(["1", "1", "2", "3", "3", None]) for _ in range(SAMPLES)]
        drawn[f"Problem {number}?"] = [(answer, answer == "1") for answer in answers]
    return drawn


@pytest.fixture(scope="module")
def generations(tmp_path_factory: pytest.TempPathFactory) -> list[Generation]:
    """The rows, written as the reference writes them (one file a seed) and read by our reader."""
    folder = tmp_path_factory.mktemp("reference")
    for sample in range(SAMPLES):
        rows = [
            {
                "problem": problem,
                "expected_answer": "1",
                "generation": "So it is." if drawn[sample][0] is None else f"So \\boxed{{{drawn[sample][0]}}}.",
                "predicted_answer": drawn[sample][0],
                "symbolic_correct": drawn[sample][1],
                "judgement": f"Judgement: {'Yes' if drawn[sample][1] else 'No'}",
                "num_generated_tokens": 10 + sample,
                "finish_reason": "stop",
            }
            for problem, drawn in reference_rows().items()
        ]
        (folder / f"output-rs{sample}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))

    async def read(out: Path) -> list[Generation]:
        stage = ReadGenerations(ReadGenerationsConfig(model="theirs"))
        run = await run_stage(stage, out, folders={"files": [folder]})
        return list(read_records(run.context.output, Generation))

    return asyncio.run(read(tmp_path_factory.mktemp("read")))


def ours(generations: list[Generation], ks: list[int]) -> dict[tuple[str, int | None], float]:
    return {(row.metric, row.k): row.value for row in evaluate(generations, ks=ks, seed=0)}


def test_at_all_samples_both_are_the_same(generations: list[Generation]) -> None:
    drawn = reference_rows().values()
    assert len(generations) == SAMPLES * PROBLEMS
    values = ours(generations, [SAMPLES])
    assert values["pass@1", 1] == pytest.approx(mean(mean(right for _, right in samples) for samples in drawn))
    assert values["pass@k", SAMPLES] == pytest.approx(mean(any(right for _, right in samples) for samples in drawn))
    assert values["maj@k", SAMPLES] == pytest.approx(mean(map(reference_majority, drawn)))
    assert values["tokens", None] == pytest.approx(mean(range(10, 10 + SAMPLES)))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_below_ours_is_the_mean_of_theirs_over_all_choices(generations: list[Generation], k: int) -> None:
    drawn = list(reference_rows().values())
    values = ours(generations, [k])
    by_choice = [mean(reference_majority(part) for part in combinations(samples, k)) for samples in drawn]
    assert values["maj@k", k] == pytest.approx(mean(by_choice))
    first = mean(reference_majority(samples[:k]) for samples in drawn)
    assert first != pytest.approx(values["maj@k", k]), "the first k alone say something else"
    any_right = [mean(any(right for _, right in part) for part in combinations(samples, k)) for samples in drawn]
    assert values["pass@k", k] == pytest.approx(mean(any_right))

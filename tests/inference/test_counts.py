"""How many samples a problem gets: the rules against independent counts, and the stage that follows them."""

import asyncio
import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.engine import Completion, EngineError, Request
from nemo_openmath.core.errors import Incomplete
from nemo_openmath.core.records import Generation, Problem, read_records
from nemo_openmath.core.records.store import write_records
from nemo_openmath.grading import GradingPool, majority
from nemo_openmath.inference.rollout.answer import answer_of
from nemo_openmath.inference.rollout.counts import AgreementRule, by_hardness, chance_of_lead
from nemo_openmath.inference.rollout.stage import Generate, GenerateConfig
from tests.support.engines import LocalEngine
from tests.support.services import Lent, stage_context
from tests.support.waiting import until


def test_hardness_gives_more_to_harder_problems() -> None:
    assert [by_hardness(rate, 4, 32) for rate in (1.0, 0.75, 0.5, 0.0, None)] == [4, 11, 18, 32, 32]


def test_chance_of_lead_is_the_beta_integral() -> None:
    from scipy.stats import beta

    for first, second in [(0, 0), (1, 0), (4, 1), (9, 9), (30, 2)]:
        assert chance_of_lead(first, second) == pytest.approx(beta.sf(0.5, first + 1, second + 1), abs=1e-12)


def test_certain_agreement_never_changes_a_label() -> None:
    """Against the vote of all 16: the same label, with fewer samples."""
    rng = random.Random(0)
    certain = AgreementRule(3, 16, 1.0)
    saved = 0
    for _ in range(300):
        weights = [rng.random() ** 3 for _ in range(4)]
        answers = rng.choices(["1", "2", "3", None], weights, k=16)
        made = batch = 0
        first = second = 0
        while batch := certain.next_batch(first, second, made):
            made += batch
            first, second = (*(c for _, c in majority(answers[:made]).groups), 0, 0)[:2]
        assert majority(answers[:made]).answer == majority(answers).answer
        saved += 16 - made
    assert saved > 0.15 * 300 * 16


class Dice(LocalEngine):
    """Answers by chance: what a problem's sample says depends on its seed alone; some requests fail at first, and all
    beyond ``most`` wait for ever."""

    def __init__(self, tokenizer: ChatTokenizer, failing: float = 0.0, most: int = 10**9):
        super().__init__(tokenizer)
        self.failing, self.most, self.requests = failing, most, 0

    async def complete(self, request: Request) -> Completion:
        self.requests += 1
        if self.requests > self.most:
            await asyncio.Event().wait()
        await asyncio.sleep(random.random() / 200)
        draw = hashlib.sha256(f"{request.prompt}{request.sampling.seed}".encode()).digest()[0]
        if draw < 256 * self.failing:
            raise EngineError("the dice rolled off the table", retryable=True)
        text = rf"\boxed{{{'1/2' if draw < 90 else '0.5' if draw < 170 else draw % 3}}}"
        return self.turn(request, text)


CONFIG = GenerateConfig(samples=12, count="agreement", least=3, temperature=1.0, max_tokens=64, concurrency=16)


async def work(
    folder: Path, output: str, engine: Dice, config: GenerateConfig, shard: int = 0, shards: int = 1
) -> dict:
    with GradingPool() as pool:
        lent = Lent(engine=engine, tokenizer=engine.tokenizer, grading=pool)
        inputs = {"problems": [folder / "problems"]}
        context = stage_context(inputs, folder / output, services=lent, shard=shard, shards=shards)
        await Generate(config).run(context)
    return context.metrics


def stored(folder: Path) -> dict[str, dict[int, str | None]]:
    by: dict[str, dict[int, str | None]] = {}
    for g in read_records(folder, Generation):
        assert g.sample not in by.setdefault(g.problem_id, {}), "stored twice"
        by[g.problem_id][g.sample] = answer_of(g)
    return by


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path / "problems", [Problem.make(f"Roll {i}.", pass_rate=i / 29) for i in range(30)])
    return tmp_path


async def test_agreement_saves_samples_at_equal_labels(folder: Path, tokenizer: ChatTokenizer) -> None:
    """And the same set comes out of a run that failed and was cancelled, and of an array of jobs."""
    engine = Dice(tokenizer)
    facts = await work(folder, "few", engine, CONFIG)
    await work(folder, "all", Dice(tokenizer), replace(CONFIG, count="fixed"))
    few, every = stored(folder / "few"), stored(folder / "all")
    made = sum(map(len, few.values()))
    assert facts["samples_saved"] == 30 * 12 - made == 30 * 12 - engine.requests > 60
    assert facts["tokens_saved_estimate"] > 0
    for problem, answers in few.items():
        assert sorted(answers) == list(range(len(answers)))
        assert answers.items() <= every[problem].items(), "a sample does not depend on how many there are"
        labels = [majority([of[i] for i in sorted(of)]).answer for of in (answers, every[problem])]
        assert len({{"0.5": "1/2"}.get(label, label) for label in labels}) == 1

    stuck = Dice(tokenizer, most=60)
    task = asyncio.create_task(work(folder, "broken", stuck, CONFIG))
    await until(lambda: stuck.requests > stuck.most)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(Incomplete, match="rolled off"):
        await work(folder, "broken", Dice(tokenizer, failing=0.05), CONFIG)
    assert (folder / "broken" / "failed-00000-of-00001.jsonl").read_text().count("rolled off") > 0
    last = Dice(tokenizer)
    facts = await work(folder, "broken", last, CONFIG)
    assert stored(folder / "broken") == few
    every_token = sum(g.completion_tokens for g in read_records(folder / "broken", Generation))
    assert facts["completion_tokens"] == every_token > facts["completion_tokens_of_this_run"], "of all attempts"
    assert last.requests < engine.requests
    assert not (folder / "broken" / "failed-00000-of-00001.jsonl").exists()

    for shard in range(3):
        await work(folder, "array", Dice(tokenizer), CONFIG, shard, 3)
    assert stored(folder / "array") == few


async def test_less_than_certainty_saves_more(folder: Path, tokenizer: ChatTokenizer) -> None:
    """Each problem ends at the first batch after which the rule is content, and not before."""
    config, rule = replace(CONFIG, confidence=0.8), AgreementRule(3, 12, 0.8)
    await work(folder, "sure", Dice(tokenizer), CONFIG)
    await work(folder, "likely", Dice(tokenizer), config)
    sure, likely = stored(folder / "sure"), stored(folder / "likely")
    assert sum(map(len, likely.values())) < 0.85 * sum(map(len, sure.values()))
    for answers in likely.values():
        names = [{"0.5": "1/2"}.get(a, a) for _, a in sorted(answers.items())]
        counts = sorted((names.count(a) for a in set(names)), reverse=True)
        first, second = (*counts, 0)[:2]
        assert len(names) == 12 or rule.settled(first, second, 12 - len(names))
        counts = [names[:-1].count(a) for a in set(names)]
        first, second = (*sorted(counts, reverse=True), 0)[:2]
        assert len(names) == 3 or not rule.settled(first, second, 13 - len(names))


async def test_samples_by_hardness(folder: Path, tokenizer: ChatTokenizer) -> None:
    facts = await work(folder, "hard", Dice(tokenizer), replace(CONFIG, count="hardness"))
    problems = {p.id: p.pass_rate for p in read_records(folder / "problems", Problem)}
    made = stored(folder / "hard")
    assert all(len(made[p]) == by_hardness(rate, 3, 12) for p, rate in problems.items())
    assert facts["samples_saved"] == sum(12 - len(a) for a in made.values())
    for shard in range(3):
        await work(folder, "hard array", Dice(tokenizer), replace(CONFIG, count="hardness"), shard, 3)
    assert stored(folder / "hard array") == made

"""What models were asked and said: the sample is the same however the work was done; a second model changes nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Problem, Record, Thread, read_drops, read_records
from nemo_openmath.core.records.store import write_records
from nemo_openmath.synthesis.problems.classify import Classify, ClassifyConfig
from nemo_openmath.synthesis.problems.exchanges import DISAGREEMENT, LETTERS, SmallestKeys, read_samples, read_second
from nemo_openmath.synthesis.problems.extract import Extract
from nemo_openmath.synthesis.problems.prompted import OnePromptConfig, PromptedStage, SecondServer
from tests.support.engines import REFUSED, Reply, ScriptedServer
from tests.support.services import Lent, run_stage, stage_context

THREADS = [Thread.make(f"Post {n}: {'thanks' if n % 3 == 0 else f'task. Find x in {n}.'}") for n in range(60)]


def reply_to(question: str) -> str | Reply:
    post = question.partition("----- post begins -----\n")[2].partition("\n----- post ends")[0]
    return "No problem" if "thanks" in post else f"Problem 1: {post.partition('task. ')[2]}"


class Models(Lent):
    """A model for each name."""

    def __init__(self, tokenizer: ChatTokenizer, **servers: ScriptedServer):
        super().__init__(tokenizer=tokenizer)
        self.engines = {name: server.engine() for name, server in servers.items()}

    async def engine(self, name: str):  # type: ignore[no-untyped-def]
        return self.engines[name], self._tokenizer


async def done(
    stage: Callable[[], PromptedStage],
    folder: Path,
    records: list[Record],
    tokenizer: ChatTokenizer,
    jobs: int = 1,
    **answers: Callable[[str], str | Reply],
) -> Path:
    """Do a stage in the folder ``out``, by the jobs of an array."""
    port = next(iter(stage().ports))
    if not (folder / port).exists():
        write_records(folder / port, records)
    for job in range(jobs):
        servers = {name: ScriptedServer(answer) for name, answer in answers.items()}
        for server in servers.values():
            await server.__aenter__()
        models = Models(tokenizer, **servers)
        context = stage_context({port: [folder / port]}, folder / "out", services=models, shard=job, shards=jobs)
        await stage().run(context)
        for name, server in servers.items():
            await models.engines[name].close()
            await server.__aexit__(None, None, None)
    return folder / "out"


async def test_the_sample_is_the_same_for_any_number_of_jobs_and_after_a_kill(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    def extract() -> Extract:
        return Extract(OnePromptConfig(examples=4))

    smallest = SmallestKeys(4, 1)
    by_key = sorted(THREADS, key=lambda thread: smallest.rank(thread.id))
    expected = {
        "accepted": [thread.id for thread in by_key if "task" in thread.forum_post][:4],
        "no problem in the post": [thread.id for thread in by_key if "thanks" in thread.forum_post][:4],
    }

    def sampled(folder: Path) -> dict[str, list[str]]:
        return {name: [row["unit"] for row in rows] for name, rows in read_samples(folder, 4, 1).items()}

    one = await done(extract, tmp_path / "one", THREADS, tokenizer, teacher=reply_to)
    three = await done(extract, tmp_path / "three", THREADS, tokenizer, jobs=3, teacher=reply_to)
    assert sampled(one) == sampled(three) == expected
    lines = len((one / "samples-00000-of-00001.jsonl").read_bytes().splitlines())
    assert lines < len(THREADS), "only what could be in the sample is written"
    row = read_samples(one, 4, 1)["accepted"][0]
    (asked,) = row["asked"]
    assert (row["sources"], asked["fields"]["forum_post"][:5], asked["reply"][:9]) == (
        [row["unit"]],
        "Post ",
        "Problem 1",
    )
    # a kill before anything was committed, in the middle of a line: all units are done again
    for path in [*one.glob("part-*"), *one.glob("drops-*"), *one.glob("journal-*"), *one.glob(".sums*")]:
        path.unlink()
    with (one / "samples-00000-of-00001.jsonl").open("ab") as file:
        file.write(b'{"unit": "thread-')
    await done(extract, tmp_path / "one", THREADS, tokenizer, teacher=reply_to)
    assert sampled(one) == expected
    none = await done(
        lambda: Extract(OnePromptConfig(examples=0)), tmp_path / "none", THREADS, tokenizer, teacher=reply_to
    )
    assert not list(none.glob("samples-*"))


async def test_long_and_broken_texts_are_kept_short(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    thread = Thread.make("thanks \0 </script>" + "x" * 200_000)
    folder = await done(lambda: Extract(OnePromptConfig()), tmp_path, [thread], tokenizer, teacher=reply_to)
    (row,) = read_samples(folder, 20, 1)["no problem in the post"]
    text = row["asked"][0]["fields"]["forum_post"]
    assert text.startswith("thanks \0 </script>xxx")
    assert text.endswith("[180,018 more characters]")
    assert len(text) < LETTERS + 50


async def test_a_second_model_is_asked_about_a_share_and_changes_no_record(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    problems: list[Record] = [Problem.make(f"Find x in {n}.") for n in range(40)]

    def number(question: str) -> int:
        return int(question.split("Find x in ")[-1].split(".")[0])

    def first(question: str) -> str:
        return "Verdict: yes" if number(question) % 4 == 0 else "Verdict: no"

    def second(question: str) -> str | Reply:
        return REFUSED if number(question) == 7 else f"Verdict: {'no' if number(question) % 2 else 'yes'}"

    def settings(share: float | None) -> Callable[[], Classify]:
        if share is None:
            return lambda: Classify(ClassifyConfig(questions=("proof",), drop=()))
        return lambda: Classify(
            ClassifyConfig(questions=("proof",), drop=(), second_engine="other", second_share=share)
        )

    alone = await done(settings(None), tmp_path / "alone", problems, tokenizer, teacher=first)
    both = await done(settings(1.0), tmp_path / "both", problems, tokenizer, teacher=first, other=second)
    part = await done(settings(0.5), tmp_path / "part", problems, tokenizer, jobs=2, teacher=first, other=second)

    def left(folder: Path) -> list[Record]:
        return sorted(read_records(folder, Problem), key=lambda record: record.id)

    assert left(alone) == left(both) == left(part)
    assert not list(read_drops(both))
    assert not list(alone.glob("second-*"))
    pairs = read_second(both)
    assert len(pairs) == 40
    by_id = {problem.id: n for n, problem in enumerate(problems)}
    for unit, (of_first, of_second, same) in pairs.items():
        n = by_id[unit]
        expected = "refused by the engine" if n == 7 else "proof" if n % 2 == 0 else "answer"
        assert (of_first, of_second) == ("proof" if n % 4 == 0 else "answer", expected)
        assert same == (of_first == of_second)
    some = read_second(part)
    assert 8 < len(some) < 32, "a share of the units, drawn by the seed"
    assert some.items() <= pairs.items()
    disagreements = read_samples(both, 20, 1)[DISAGREEMENT]
    assert {row["unit"] for row in disagreements} == {unit for unit, (_, _, same) in pairs.items() if not same}
    row = next(row for row in disagreements if by_id[row["unit"]] != 7)
    assert (row["asked"][0]["reply"], row["second"]["asked"][0]["reply"]) == ("Verdict: no", "Verdict: yes")


async def test_a_second_model_on_a_server_of_its_own_counts_its_tokens(
    tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    problems = [Problem.make(f"Find x in {n}.") for n in range(6)]

    def settings(server: ScriptedServer) -> ClassifyConfig:
        own = SecondServer(url=server.url, tokenizer=tokenizer.folder, api="chat", server="openai")
        return ClassifyConfig(
            questions=("proof",), drop=(), second_engine="scripted", second_share=1.0, second_server=own
        )

    async with ScriptedServer(lambda _: Reply("Verdict: yes", tokens=7)) as server:
        stage = Classify(settings(server))
        stage.check({})
        assert stage.engines() == ("teacher",)
        run = await run_stage(
            stage, tmp_path, lambda _: Reply("Verdict: no", tokens=2), tokenizer=tokenizer, problems=problems
        )
        assert (len(run.asked), len(server.asked)) == (6, 6)
    assert set(read_second(run.context.output).values()) == {("answer", "proof", False)}
    (journal,) = run.context.output.glob("journal-*")
    assert sum(json.loads(line).get("tokens", 0) for line in journal.read_text().splitlines()) == 6 * (2 + 7)
    moved = replace(settings(server), second_server=replace(settings(server).second_server, url="http://else/v1"))
    assert Classify(moved).settings() == stage.settings(), "where a model is served changes nothing"
    with pytest.raises(UserError, match="second_server without second_engine"):
        replace(moved, second_engine=None)

"""The stand-in behind the Engine protocol: reads prompts from token ids, reads outputs, errs at its stated rates."""

import asyncio
import contextlib
import io
import json
import sys
from dataclasses import fields, replace
from itertools import chain, islice
from pathlib import Path

import aiohttp
import pytest

from nemo_openmath.chat import ChatTokenizer, Message, Transcript, load_template
from nemo_openmath.chat.blocks import judgment_of, notice_block, output_block
from nemo_openmath.core.engine import Completion, Engine, Finish, Request, Sampling
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.tags import CODE_END
from nemo_openmath.demo import Item, StandInTeacher, TeacherConfig, make_benchmark, make_item, train_tokenizer
from nemo_openmath.demo.corpus import documents, recipe_texts
from nemo_openmath.demo.teacher import load_config
from nemo_openmath.grading.extraction import extract_answer

FLAWLESS = TeacherConfig(**{field.name: 0.0 for field in fields(TeacherConfig)})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    corpus = chain(islice(documents(0), 800), recipe_texts(0, 150))
    return train_tokenizer(corpus, tmp_path_factory.mktemp("tokenizer"))


async def ask(teacher: StandInTeacher, name: str, seed: int = 0, **values: object) -> str:
    messages = load_template(name).messages(**values)
    request = Request(tuple(teacher.tokenizer.prompt_ids(messages)), Sampling(max_tokens=2000, seed=seed))
    return (await teacher.complete(request)).text


async def solve(teacher: StandInTeacher, item: Item, budget: int, seed: int) -> Transcript:
    """A rollout whose programs really run (they are the world's own)."""
    tokenizer = teacher.tokenizer
    messages = load_template("tir").messages(problem=item.statement, total_code_executions=budget)
    ids, text, variables = tokenizer.prompt_ids(messages), "", {}
    for used in range(1, budget + 2):
        sampling = Sampling(max_tokens=600, seed=seed, stop=(CODE_END,))
        completion = await teacher.complete(Request(tuple(ids), sampling))
        assert completion.finish is Finish.STOP
        text += completion.text
        if completion.stop is None:
            return Transcript.from_text(messages, text)
        assert completion.text.endswith(CODE_END)
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                exec(Transcript.from_text(messages, text).code_blocks()[-1], variables)
        except SyntaxError as error:
            out.write(f"SyntaxError: {error}")
        block = output_block(out.getvalue()) + notice_block(budget - used)
        text += block
        ids += [*completion.token_ids, *tokenizer.encode(block)]
    raise AssertionError(f"over budget:\n{text}")


async def test_flawless_solutions_read_their_outputs(tokenizer: ChatTokenizer) -> None:
    teacher = StandInTeacher(tokenizer, replace(FLAWLESS, staged=1.0, broken_code=0.3))
    assert isinstance(teacher, Engine)
    blocks = set()
    for seed, item in enumerate(make_benchmark(0, 60)):
        transcript = await solve(teacher, item, 3, seed)
        assert extract_answer(transcript.text).answer == item.answer
        assert transcript.text.startswith("<think>")
        assert transcript.summary
        blocks.add(len(transcript.code_blocks()))
    assert blocks == {1, 2}
    # The second program is written from what the runner put there, whatever it is.
    item = make_item("divisor-chain", (12, 7))
    messages = load_template("tir").messages(problem=item.statement, total_code_executions=2)
    steady = StandInTeacher(tokenizer, replace(FLAWLESS, staged=1.0))
    start = tokenizer.render(messages) + f"<think>x\n<tool_call>\n{item.stages[0]}\n</tool_call>"
    text = steady.write(start + output_block("4321") + notice_block(1), Sampling())
    assert "print(pow(4321, 4321, 7))" in text


async def test_errors_come_at_their_rates(tokenizer: ChatTokenizer) -> None:
    items = [item for item in make_benchmark(0, 100) if "so on" not in item.steps]
    for config, low, high in ((FLAWLESS, 1, 1), (replace(FLAWLESS, cot_error=0.5, cot_error_hard=0.5), 0.4, 0.6)):
        teacher = StandInTeacher(tokenizer, config)
        right = [
            extract_answer(await ask(teacher, "cot", seed, problem=item.statement)).answer == item.answer
            for item in items
            for seed in range(4)
        ]
        assert low <= sum(right) / len(right) <= high
    item = items[0]
    no_code = StandInTeacher(tokenizer, replace(FLAWLESS, no_code=1.0))
    assert not (await solve(no_code, item, 3, 0)).code_blocks()
    ignores = StandInTeacher(tokenizer, replace(FLAWLESS, ignored_output=1.0))
    assert extract_answer((await solve(ignores, item, 3, 0)).text).answer != item.answer


async def test_clerical_prompts_summaries_and_selection(tokenizer: ChatTokenizer) -> None:
    teacher = StandInTeacher(tokenizer, FLAWLESS)
    item = make_benchmark(0, 5)[4]
    assert await ask(teacher, "extract-problems", forum_post=f"Hi! {item.statement}") == f"Problem 1: {item.statement}"
    for kind in ("proof", "multiple-choice", "binary", "invalid"):
        assert (await ask(teacher, f"classify-{kind}", problem=item.statement)).endswith("\nVerdict: no")
    found = await ask(teacher, "extract-answer", problem=item.statement, forum_discussions="Post 1:\nI get 17.")
    assert found == "Answer: 17"
    same = await ask(teacher, "decontaminate", problem=item.statement, candidate=item.reworded().statement)
    assert same.endswith("Verdict: yes")
    verdict = await ask(teacher, "judge", problem="?", predicted_answer="12", expected_answer="12")
    assert verdict.endswith("Judgement: Yes")
    solution = (await solve(teacher, item, 2, 0)).text
    summary = await ask(teacher, "summarize", problem=item.statement, solution=solution)
    assert summary.endswith(f"\\boxed{{{item.answer}}}.")
    wrong = summary.replace(item.answer, "99999")
    texts = "\n\n".join(f"Solution {i}:\n{text}" for i, text in enumerate([wrong, wrong, summary, wrong]))
    chosen = await ask(teacher, "genselect", num_solutions=4, max_idx=3, problem=item.statement, solutions=texts)
    assert judgment_of(chosen) == 2
    assert judgment_of(await ask(teacher, "summarize-comparison", question=texts, comparison=chosen)) == 2


async def test_pure_in_prompt_and_seed_and_bounded_in_tokens(tokenizer: ChatTokenizer) -> None:
    teacher = StandInTeacher(tokenizer)
    item = make_benchmark(0, 1)[0]
    ids = tuple(tokenizer.prompt_ids(load_template("cot").messages(problem=item.statement)))

    async def complete(**sampling: float | int) -> Completion:
        return await teacher.complete(Request(ids, Sampling(**sampling)))  # type: ignore[arg-type]

    assert len({(await complete(seed=seed)).text for seed in range(200)}) > 1
    assert len({(await complete(seed=seed, temperature=0)).text for seed in range(40)}) == 1
    whole = await complete(seed=3)
    assert whole == await complete(seed=3) == await StandInTeacher(tokenizer).complete(Request(ids, Sampling(seed=3)))
    assert whole.token_ids[-1] == tokenizer.end_of_turn
    assert tokenizer.decode(whole.token_ids[:-1]) == whole.text
    cut = await complete(seed=3, max_tokens=5)
    assert cut.finish is Finish.LENGTH
    assert cut.token_ids == whole.token_ids[:5]
    text = await teacher.complete(Request(tokenizer.decode(ids), Sampling(seed=3)))
    assert text == whole
    chunks = [chunk async for chunk in teacher.stream(Request(ids, Sampling(seed=3)))]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].completion == whole
    system = tokenizer.render([Message("system", "Be brief."), Message("user", "hello")])
    assert "stands in" in teacher.write(system, Sampling())


def test_a_wrong_rate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text('{"cot_errors": 0.1}')
    with pytest.raises(UserError, match="cot_errors"):
        load_config(path)
    path.write_text('{"cot_error": 1.5}')
    with pytest.raises(UserError, match="not between"):
        load_config(path)
    assert load_config('{"cot_error": 0.5}') == TeacherConfig(cot_error=0.5)


async def test_served_over_http_by_its_own_process(tokenizer: ChatTokenizer) -> None:
    command = [sys.executable, "-m", "nemo_openmath.demo.teacher", "--tokenizer", str(tokenizer.folder), "--config"]
    process = await asyncio.create_subprocess_exec(*command, '{"cot_error": 0.3}', stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        url = json.loads(await process.stdout.readline())["url"]
        item = make_benchmark(0, 3)[2]
        ids = tuple(tokenizer.prompt_ids(load_template("cot").messages(problem=item.statement)))
        call = {"model": "stand-in-teacher", "prompt": ids, "max_tokens": 200, "temperature": 0.7, "seed": 5}
        call |= {"stop": ["</think>"], "include_stop_str_in_output": True, "return_token_ids": True}
        async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/completions", json=call) as response:
            (choice,) = (await response.json())["choices"]
        request = Request(ids, Sampling(max_tokens=200, seed=5, stop=("</think>",)))
        own = await StandInTeacher(tokenizer, TeacherConfig(cot_error=0.3)).complete(request)
        assert (choice["text"], tuple(choice["token_ids"])) == (own.text, own.token_ids)
        assert own.text.endswith("</think>")
    finally:
        process.terminate()
        await process.wait()

"""Solutions of a model that writes its code in fences: what runs, what it is shown, and what the record holds."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from nemo_openmath.chat import Author, ChatTokenizer, Transcript, encode, load_template
from nemo_openmath.chat.blocks import budget_of, notice_block, output_block
from nemo_openmath.chat.fences import read_fences
from nemo_openmath.competition.stage import Compete, CompeteConfig
from nemo_openmath.core.engine import Completion, Finish, Request, Usage
from nemo_openmath.core.records import Generation, Mode, Problem, read_records
from nemo_openmath.core.records.store import write_records
from nemo_openmath.core.sandbox import Execution, Limits, Session
from nemo_openmath.inference.rollout import Outcome, RolloutSettings, roll_out
from nemo_openmath.inference.rollout.loop import ids_of
from nemo_openmath.inference.rollout.stage import Generate, GenerateConfig
from nemo_openmath.sandbox.local import LocalSandbox
from tests.support.engines import LocalEngine
from tests.support.services import Lent, stage_context
from tests.support.tokenizers import byte_level, sentencepiece_like, unigram

SETTINGS = RolloutSettings(max_tokens=2000, code_seconds=300.0, tool_format="fences")
MESSAGES = load_template("tir-fences").messages(problem="What is 6 times 7?", total_code_executions=3)


class Writer(LocalEngine):
    """A model that writes on as ``write`` says of the text of its turn so far, token by token, up to the token in which
    a stop string ends, as engines do."""

    def __init__(self, tokenizer: ChatTokenizer, write: Callable[[str], str]):
        super().__init__(tokenizer)
        self._write = write
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        assert isinstance(request.prompt, tuple)
        self.requests.append(request)
        turn = self.tokenizer.decode(request.prompt).rpartition("<|im_start|>assistant\n")[2]
        sampling, ids = request.sampling, list[int]()
        for number in (*self.tokenizer.encode(self._write(turn)), self.tokenizer.end_of_turn):
            ids.append(number)
            usage = Usage(len(request.prompt), 0, len(ids))
            text = self.tokenizer.decode(ids)
            if number == self.tokenizer.end_of_turn:
                text = text.removesuffix(self.tokenizer.decode([number]))
                return Completion(text, tuple(ids), Finish.STOP, None, usage)
            ends = [(at, -len(stop), stop) for stop in sampling.stop if (at := text.find(stop)) >= 0]
            if ends:
                at, _, stop = min(ends)
                return Completion(text[:at] + stop, tuple(ids), Finish.STOP, stop, usage)
            if len(ids) == sampling.max_tokens:
                return Completion(text, tuple(ids), Finish.LENGTH, None, usage)
        raise AssertionError


def saying(*texts: str) -> Callable[[str], str]:
    """Write the first text, behind the first output the second, and so on; what stands behind a cut is not repeated."""

    def write(turn: str) -> str:
        number = turn.count("```output\n")
        written = turn.rpartition("```output\n")[2].partition("```\n")[2] if number else turn
        text = texts[min(number, len(texts) - 1)]
        return text[len(written) :] if text.startswith(written) else ""

    return write


in_one_loop = pytest.mark.asyncio(loop_scope="module")  # that of the sandbox, which takes seconds to start


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox() -> AsyncIterator[LocalSandbox]:
    async with LocalSandbox(spares=1) as opened:
        yield opened


async def roll(engine: Writer, sandbox: LocalSandbox, budget: int = 3, **changes: object) -> Outcome:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return await roll_out(engine, engine.tokenizer, MESSAGES, settings, seed=1, key="k", sandbox=sandbox, budget=budget)


def authors(transcript: Transcript) -> list[tuple[Author, str]]:
    return [(span.author, span.text) for span in transcript.spans]


@in_one_loop
async def test_what_fences_hold_is_run_and_recorded_in_tags(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    """The second output is made up twice over; a fence of another language goes on."""
    engine = Writer(
        tokenizer,
        saying(
            "Let x.\n\n```text\nx = 6 * 7\n```\n\n  ```python\n  x = 6 * 7\n  print(x)\n  ```\n\n```output\n41\n```\n",
            "\nOnce more:\n```py\nx + 1\n```output\n44\n```\n",
            "\nSo \\boxed{42}.",
        ),
    )
    out = await roll(engine, sandbox)
    first = "Let x.\n\n```text\nx = 6 * 7\n```\n\n<tool_call>\nx = 6 * 7\nprint(x)\n</tool_call>"
    assert authors(out.transcript) == [
        (Author.MODEL, first),
        (Author.TOOL, output_block("42") + notice_block(2)),
        (Author.MODEL, "\nOnce more:\n<tool_call>\nx + 1\n</tool_call>"),
        (Author.TOOL, output_block("43") + notice_block(1)),
        (Author.MODEL, "\nSo \\boxed{42}."),
    ]
    assert (out.finish, out.cost.code_calls, out.cost.invented_outputs) == ("stop", 2, 1)
    assert out.transcript.finished
    assert out.transcript.tokenizer is None
    assert all(span.ids is None for span in out.transcript.spans)
    shown = tokenizer.decode(engine.requests[-1].prompt)  # type: ignore[arg-type]
    assert shown.endswith(
        "  print(x)\n  ```\n```output\n42\n```\n\nOnce more:\n```py\nx + 1\n```\n```output\n43\n```\n"
    )
    assert len({request.sampling.seed for request in engine.requests}) == len(engine.requests) == 4


ENDINGS: list[tuple[list[str], dict[str, int], str, int, int, str]] = [
    (["```python\n1\n```\n"], {}, "budget", 2, 0, "<tool_call>\n1\n</tool_call>"),
    (["```python\nprint(1)"], {}, "stop", 0, 0, "```python\nprint(1)"),  # open at the end of the turn
    (["```python\n" + "print(1)\n" * 300], {"max_tokens": 60}, "repetition", 0, 0, ""),  # and at the limit
    (["```python\n1\n```", "So 1."], {}, "stop", 1, 0, "So 1."),  # closed by the turn's last token
    (["```python\ndef f():\n    return 1\n```\n", "```py\nf()\n```\n", "1"], {}, "stop", 2, 0, "1"),
    (["It prints\n```output\n1\n```\n\\boxed{1}"], {}, "invented", 0, 1, "It prints\n"),
    (["By print(1):\nOutput:\n```\n1\n```\n\\boxed{1}"], {}, "invented", 0, 1, "Output:\n"),
    (["```python\n2\n```\n", "\nOutput:\n```\n2\n```\nSo 2."], {}, "stop", 1, 0, "So 2."),  # a quotation
    (["```python\n2\n```\n", "\n```text\n3\n```\nSo 3."], {}, "invented", 1, 1, "\n"),
    (["I call <tool_call>\n1\n</tool_call>"], {}, "cut", 0, 0, "I call "),  # by tags, which nobody asked for
    (["```python\nprint('</tool_call>')\n```\n"], {}, "cut", 0, 0, "print('"),
    (["```\n1 +\n```\n" * 90 + "```python\n1\n```\nand so on", "end"], {}, "stop", 1, 0, "end"),
    (["```python\n2\n```\n```python\n3\n```\n", "both"], {}, "stop", 1, 0, "both"),
]


@in_one_loop
async def test_odd_endings_in_fences(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    for texts, changes, finish, calls, invented, end in ENDINGS:
        engine = Writer(tokenizer, saying(*texts))
        out = await roll(engine, sandbox, 2, **changes)
        assert (out.finish, out.cost.code_calls, out.cost.invented_outputs) == (finish, calls, invented), texts
        assert out.transcript.text.endswith(end)
        assert len(engine.requests) < 80, "a model that writes fences for ever is not asked for each"


PIECES = (
    *("So ", "x = 1\n", "\n", "\r\n", "Ä π \u2028", "Output:\n", "  ", "- ", "`a` ", "\\boxed{1}"),
    *("```python\n", "```py\r\n", "```\n", "``` \n", "```", "````\n", "~~~\n", "~~~python\n", "```output", "```text\n"),
    *(
        "print(1)\n",
        "x = 2\nprint(x, 'ß')\n",
        "  print('y')\n",
        "1 / 0\n",
        "print('```')\n",
        "def f():\n    return 3\n",
    ),
    *("```python\nprint(5)\n```\n", "\n   ```python\n   print(6)\n   ```\n", "```python\nx\n```output\n9\n```\n"),
)


class RecordingSandbox:
    """The real sandbox, and what it ran."""

    def __init__(self, sandbox: LocalSandbox):
        self._sandbox = sandbox
        self.ran: list[str] = []

    async def session(self, limits: Limits | None = None) -> Session:
        session = await self._sandbox.session(limits)
        execute = session.execute

        async def noting(code: str, limits: Limits | None = None) -> Execution:
            self.ran.append(code)
            return await execute(code, limits)

        session.execute = noting  # type: ignore[method-assign]
        return session


@in_one_loop
async def test_whatever_is_written_the_record_holds_what_ran(tokenizer: ChatTokenizer, sandbox: LocalSandbox) -> None:
    """Of random texts: authors in turn, programs as they ran, no output by the model, and the text alone tells it."""
    draw = random.Random(1)
    finishes = Counter[str]()
    for _ in range(200):
        written = iter(["".join(draw.choices(PIECES, k=draw.randrange(12))) for _ in range(200)])
        engine, recording = Writer(tokenizer, lambda _, written=written: next(written)), RecordingSandbox(sandbox)
        settings = replace(SETTINGS, max_tokens=draw.choice([30, 2000]))
        budget = draw.randint(1, 3)
        out = await roll_out(engine, tokenizer, MESSAGES, settings, seed=1, key="k", sandbox=recording, budget=budget)
        finishes[out.finish] += 1
        transcript, programs = out.transcript, out.transcript.code_blocks()
        assert programs[: len(recording.ran)] == recording.ran
        assert len(programs) - len(recording.ran) == (out.finish == "budget")
        assert len(recording.ran) == out.cost.code_calls <= budget
        assert [span.author for span in transcript.spans[1::2]] == [Author.TOOL] * out.cost.code_calls
        assert {span.author for span in transcript.spans[::2]} <= {Author.MODEL}
        again = Transcript.from_text(transcript.messages, transcript.text, finished=transcript.finished)
        assert authors(again) == authors(transcript)
        assert [budget_of(transcript.text)] == [budget if recording.ran else None]
        for prose in (span.text.partition("<tool_call>")[0] for span in transcript.spans[::2]):
            left = read_fences(prose, ended=False)
            assert left.invented is None
            assert left.call is None or out.finish == "length", "what ran is in tags alone"
        for before, after in pairwise(engine.requests):
            assert after.prompt[: len(before.prompt)] == before.prompt, "a prefix cache holds all that went before"
    assert min(finishes[finish] for finish in ("stop", "length", "budget", "invented")) > 5, finishes


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like, unigram])
def test_ids_of_a_text_that_was_cut_are_kept_as_far_as_they_go(make: Callable[[Path], Path], tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(make(tmp_path))
    for text in ("```python\nprint(sum(range(10)))\n```\n\nSo", " Let größer 😀\n```\n\n\n"):
        ids = tokenizer.encode(text)
        for end in range(1, len(text) + 1):
            for tail in ("", "\n", "```\n"):
                cut = ids_of(tokenizer, ids, text[:end] + tail)
                assert tokenizer.decode(cut).lstrip(" ") == (text[:end] + tail).lstrip(" ")
                whole = next(n for n in range(len(ids), -1, -1) if len(tokenizer.decode(ids[:n])) <= end - 1)
                kept = max(0, whole - 3)  # a character may be four tokens
                assert cut[:kept] == ids[:kept]


@in_one_loop
async def test_records_are_in_tags_and_say_how_they_were_asked(
    tokenizer: ChatTokenizer, sandbox: LocalSandbox, tmp_path: Path
) -> None:
    problem = Problem.make("What is 6 times 7?", expected_answer="42")
    write_records(tmp_path / "problems", [problem])
    (tmp_path / "own.txt").write_text("Own {problem}, {total_code_executions}")
    ids = set()
    for name, config in {
        "fences": GenerateConfig(mode=Mode.TIR, tool_format="fences"),
        "own": GenerateConfig(mode=Mode.TIR, tool_format="fences", rewritten_prompt=tmp_path / "own.txt"),
        "tags": GenerateConfig(mode=Mode.TIR),
    }.items():
        engine = Writer(tokenizer, saying("```python\n6 * 7\n```output\n41\n```\n", "\\boxed{42}"))
        lent = Lent(engine=engine, tokenizer=tokenizer, sandbox=sandbox)
        context = stage_context({"problems": [tmp_path / "problems"]}, tmp_path / name, services=lent)
        await Generate(config).run(context)
        (record,) = read_records(tmp_path / name, Generation)
        ids.add(record.id)
        stored = Transcript.from_json(record.transcript)
        if name == "tags":
            assert "asked" not in record.extra
            assert context.metrics["solutions_with_uncalled_code"] == 1
            assert "tool_format" not in Generate(config).settings()
            assert "tool_format" not in Compete(CompeteConfig(engine="teacher")).settings()["solver"]["rollout"]
            continue
        digest = load_template("tir-fences").digest
        assert record.extra["asked"] == {"tool_format": "fences", "prompt": digest, "ids": "rewritten"}
        assert record.extra["invented_outputs"] == context.metrics["invented_outputs"] == 1
        assert context.metrics["blocks_run"] == record.code_calls == 1
        assert stored.code_blocks() == ["6 * 7"]
        shipped = load_template("tir", None if name == "fences" else tmp_path / "own.txt")
        assert stored.messages == shipped.messages(problem=problem.problem, total_code_executions=record.budget)
        encoded = encode(stored, tokenizer)  # a student's rows: the output is no target
        targets = tokenizer.decode([i for i, t in zip(encoded.ids, encoded.loss_mask, strict=True) if t])
        assert targets == "<tool_call>\n6 * 7\n</tool_call>\\boxed{42}<|im_end|>"
    assert len(ids) == 2, "how the code is called is part of a sample's id, how it is recorded is not"

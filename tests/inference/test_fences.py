"""Solutions of a model that writes its code in fences: what runs, what it is shown, and what the record holds."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from nemo_openmath.chat import Author, ChatTokenizer, Transcript, load_template
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.core.engine import Completion, Finish, Request, Usage
from nemo_openmath.inference.rollout import Outcome, RolloutSettings, roll_out
from nemo_openmath.sandbox.local import LocalSandbox
from tests.support.engines import LocalEngine

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
        prompt = len(self.tokenizer.prompt_ids(MESSAGES))
        assert not isinstance(request.prompt, str)
        self.requests.append(request)
        turn = self.tokenizer.decode(request.prompt[prompt:])
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


@pytest.fixture
async def sandbox() -> AsyncIterator[LocalSandbox]:
    async with LocalSandbox(spares=1) as opened:
        yield opened


async def roll(engine: Writer, sandbox: LocalSandbox, budget: int = 3, **changes: object) -> Outcome:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return await roll_out(engine, engine.tokenizer, MESSAGES, settings, seed=1, key="k", sandbox=sandbox, budget=budget)


def authors(transcript: Transcript) -> list[tuple[Author, str]]:
    return [(span.author, span.text) for span in transcript.spans]


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

"""What the stages that make data cost by themselves: everything but the model.

    python benchmarks/synthesis.py summarize [--solutions 4000] [--tokenizer FOLDER]

``summarize``: solutions a second of ``solutions.summarize`` with an engine that answers at once. The prompts hold
solutions of 34,000 characters. Asked in text (the server cuts it), in ids (a thread of this process does), and, as the
peer, in ids that are made where the requests are made.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from tokenization import make_tokenizer, text

from nemo_openmath.chat import ChatTokenizer, Message, Transcript
from nemo_openmath.core.engine import Capabilities, Chunk, Completion, Finish, Request, Usage
from nemo_openmath.core.progress import Progress
from nemo_openmath.core.records import Generation, Problem, Record, RecordWriter
from nemo_openmath.core.stage import Services, Stage, StageContext
from nemo_openmath.grading import GradingPool, majority
from nemo_openmath.inference import asking
from nemo_openmath.synthesis.solutions.summarize import Summarize, SummarizeConfig


class InstantEngine:
    """Answers every request at once with one text."""

    model = "instant"

    def __init__(self, answer: str, *, same_tokens: bool):
        self.capabilities = replace(Capabilities(True, True, True, False, True, False), same_tokens=same_tokens)
        self.completion = Completion(answer, (1, 2, 3), Finish.STOP, None, Usage(9000, 0, 500))

    async def complete(self, request: Request) -> Completion:
        return self.completion

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        yield Chunk(self.completion.text, completion=self.completion)

    async def close(self) -> None: ...


class Lent(Services):
    """Lends one engine, its tokenizer and a grading pool."""

    vote = staticmethod(majority)

    def __init__(self, engine: InstantEngine, tokenizer: ChatTokenizer, pool: GradingPool):
        self._engine, self._tokenizer, self._pool = engine, tokenizer, pool

    async def engine(self, name: str) -> tuple[InstantEngine, ChatTokenizer]:
        return self._engine, self._tokenizer

    async def sandbox(self) -> None:
        raise NotImplementedError

    async def grading(self) -> GradingPool:
        return self._pool


def store(folder: Path, records: Sequence[Record]) -> Path:
    with RecordWriter(folder) as writer:
        for record in records:
            writer.commit(record.id, [record])
    return folder


async def run(stage: Stage, output: Path, services: Services, **ports: Path) -> tuple[float, float]:
    """Run a stage; return its wall and CPU seconds."""
    output.mkdir()
    progress = Progress("benchmark", console=Console(file=io.StringIO()))
    context = StageContext("benchmark", {p: [f] for p, f in ports.items()}, output, 1, services, progress)
    wall, cpu = time.perf_counter(), time.process_time()
    await stage.run(context)
    return time.perf_counter() - wall, time.process_time() - cpu


async def summarize(folder: Path, solutions: int, model: Path | None) -> None:
    tokenizer = ChatTokenizer.load(model or make_tokenizer(folder / "model"))
    rng = random.Random(1)
    bodies = [text(rng, 8000)[:34_000] for _ in range(50)]
    problems = [Problem.make(f"Problem {n}: {text(rng, 60)}") for n in range(solutions)]
    generations = [
        Generation(
            id=f"generation-{n}",
            problem_id=problem.id,
            mode="cot",
            model="m",
            sample=0,
            transcript=Transcript.from_text(
                (Message("user", problem.problem),), f"<think>\n{n} {bodies[n % 50]}\n</think>\nIt is \\boxed{{42}}."
            ).to_json(),
            finish="stop",
            predicted_answer="42",
            verdict="equal",
        )
        for n, problem in enumerate(problems)
    ]
    ports = {
        "generations": store(folder / "generations", generations),
        "problems": store(folder / "problems", problems),
    }
    del generations
    answer = f"The solution says that {text(rng, 300)} and so it is \\boxed{{42}}."
    limit = asking.LONG
    with GradingPool() as pool:
        for name, same_tokens, long in (
            ("text", True, limit),
            ("ids, in threads", False, limit),
            ("ids", False, 10**9),
        ):
            asking.LONG = long
            services = Lent(InstantEngine(answer, same_tokens=same_tokens), tokenizer, pool)
            wall, cpu = await run(Summarize(SummarizeConfig()), folder / f"out {name}", services, **ports)
            print(f"{name:16} {solutions / wall:6.0f} solutions/s, {1e3 * cpu / solutions:5.2f} ms CPU each")
    written = {frozenset(path.read_bytes().splitlines()) for path in folder.glob("out */part-*")}
    assert len(written) == 1, "the records differ"
    print(f"equal records; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["summarize"])
    parser.add_argument("--solutions", type=int, default=4000)
    parser.add_argument("--tokenizer", type=Path, help="folder of a model; default: one trained in place")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(summarize(Path(name), arguments.solutions, arguments.tokenizer))


if __name__ == "__main__":
    main()

"""Solutions with code whose executions take 100 ms, against the same solutions whose executions take none, one run.

    OMP_NUM_THREADS=2 python benchmarks/rollout.py [--threads 2] [--solutions 384] [--rounds 3]

A real engine (a random 1M-parameter model whose vocabulary has code blocks among its tokens), the real sandbox; both
sides make the same tokens, and the code differs by a sleep alone. 64 slots, 128 solutions in flight: while some wait
for their code, others decode. Counted until the last solution begins: what follows is a tail of few rows on both sides.
The two sides alternate. ``rows a step`` tells without a clock whether the engine idles.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from nemo_openmath.chat import Message
from nemo_openmath.chat.blocks import notice_block
from nemo_openmath.core.sandbox import Execution, Limits, Session
from nemo_openmath.core.tags import CODE_END, CODE_START
from nemo_openmath.inference.embedded import EmbeddedEngine
from nemo_openmath.inference.rollout import Outcome, RolloutSettings, roll_out
from nemo_openmath.sandbox.local import LocalSandbox

SLOTS, IN_FLIGHT, BUDGET, CONTEXT = 64, 128, 8, 2048
SETTINGS = RolloutSettings(temperature=1.0, top_p=1.0, max_tokens=1024, repetition=0)


def make_model(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({w: i for i, w in enumerate(["<|im_end|>", *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([f"{CODE_START}\nprint({i})\n{CODE_END}" for i in range(4)])
    backend.add_tokens([notice_block(i) for i in range(BUDGET)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 5, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": backend.get_vocab_size(), "max_position_embeddings": CONTEXT}
    Qwen2ForCausalLM(Qwen2Config(**shape, initializer_range=0.05, eos_token_id=0)).save_pretrained(folder)


@dataclass
class Sleeping:
    """A sandbox whose code sleeps first."""

    sandbox: LocalSandbox
    seconds: float

    async def session(self, limits: Limits | None = None) -> Session:
        return _Session(await self.sandbox.session(limits), self.seconds)

    async def close(self) -> None: ...


class _Session:
    def __init__(self, session: Session, seconds: float):
        self._session, self._seconds = session, seconds
        self.close, self.reset = session.close, session.reset
        self.__aenter__, self.__aexit__ = session.__aenter__, session.__aexit__

    async def execute(self, code: str, limits: Limits | None = None) -> Execution:
        return await self._session.execute(f"import time\ntime.sleep({self._seconds})\n{code}", limits)


@dataclass
class Side:
    seconds: float
    tokens: int = 0
    calls: int = 0
    steps: int = 0
    wall: float = 0.0
    cached: int = 0
    computed: int = 0


async def solve(folder: Path, sandbox: LocalSandbox, side: Side, solutions: int, threads: int) -> list[Outcome]:
    engine = EmbeddedEngine.load(folder, slots=SLOTS, threads=threads)
    gate, slow = asyncio.Semaphore(IN_FLIGHT), Sleeping(sandbox, side.seconds)

    async def solution(i: int) -> Outcome:
        messages = (Message("user", f"Problem {i}: what is {i} + {i}?"),)
        async with gate:
            if i == solutions - 1:
                side.wall += time.perf_counter() - began
                side.tokens += engine.statistics.generated_tokens
                side.steps += engine.statistics.steps
            return await roll_out(
                engine, engine.tokenizer, messages, SETTINGS, seed=i, key=str(i), sandbox=slow, budget=BUDGET
            )

    began = time.perf_counter()
    outcomes = await asyncio.gather(*(solution(i) for i in range(solutions)))
    side.calls += sum(o.cost.code_calls for o in outcomes)
    side.cached += sum(o.cost.cached_tokens for o in outcomes)
    side.computed += sum(o.cost.computed_tokens for o in outcomes)
    await engine.close()
    return outcomes


async def run(solutions: int, rounds: int, threads: int) -> None:
    sides = [Side(0.0), Side(0.1)]
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name))
        async with LocalSandbox(workers=IN_FLIGHT) as sandbox:
            for _ in range(rounds):
                instant, slow = [await solve(Path(name), sandbox, side, solutions, threads) for side in sides]
                assert [o.transcript for o in instant] == [o.transcript for o in slow]
    for side in sides:
        print(
            f"{1e3 * side.seconds:3.0f} ms a call: {side.tokens / side.wall:6.0f} tokens/s, "
            f"{side.tokens / side.steps:.1f} rows a step, {side.calls / solutions / rounds:.1f} calls a solution, "
            f"{100 * side.cached / (side.cached + side.computed):.1f}% of prompt tokens from the cache"
        )
    print(f"ratio {sides[1].tokens / sides[1].wall / (sides[0].tokens / sides[0].wall):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--solutions", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    asyncio.run(run(arguments.solutions, arguments.rounds, arguments.threads))


if __name__ == "__main__":
    main()

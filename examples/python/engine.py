"""Generate text with the engine that decodes in this process; a server over HTTP has the same protocol.

python examples/python/engine.py [MODEL_FOLDER]
"""

import asyncio
import sys
from pathlib import Path

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.engine import Request, Sampling
from nemo_openmath.inference.open import EngineConfig, open_engine

MODEL = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parents[1] / "base")


async def main() -> None:
    engine = await open_engine(EngineConfig(kind="embedded", model=MODEL))  # or kind="http", urls=(...), model=NAME
    prompt = tuple(ChatTokenizer.load(MODEL, chat=False).encode("Problem: What is 12 + 30?\nSolution:"))
    samples = [Request(prompt, Sampling(max_tokens=24, temperature=0.6, seed=seed)) for seed in range(4)]
    for completion in await asyncio.gather(*map(engine.complete, samples)):  # decoded together, in one batch
        print(f"{completion.finish}, {len(completion.token_ids)} tokens: {completion.text!r}")
    await engine.close()


asyncio.run(main())

"""Run a model's program in the sandbox: variables last from block to block, nothing else of the machine is there.

python examples/python/sandbox.py
"""

import asyncio

from nemo_openmath.sandbox import Limits, LocalSandbox

BLOCKS = (
    "from sympy import *; x = symbols('x'); roots = solve(x**2 - 5*x + 6)",
    "sum(roots)",  # the value of a last expression is shown, as in a notebook
    "open('/etc/passwd').read()",
    "while True: pass",
)


async def main() -> None:
    async with LocalSandbox(workers=1) as sandbox, await sandbox.session(Limits(wall_s=1.0)) as session:
        for block in BLOCKS:
            execution = await session.execute(block)
            print(f"{execution.status}: {execution.output.strip().splitlines()[-1:]}")


asyncio.run(main())

"""Kills a training at random moments, again and again, until it has come to its end.

    python -m tests.training.kill_sweep SPEC.json...

Ranks are forked from a process that has imported everything already, so that an attempt costs a second and not ten. A
kill comes after one to three steps of an attempt have begun, at a moment uniform in the time that a step and its save
took; no further step begins, however late the kill is. Half of the times all ranks die at once, as when a machine is
lost; else one dies, and the others up to 0.2 s later.

The spec: {"model": folder, "output": folder, "steps": n, "kills": n, "seed": n, "layouts": [[ranks, config],
...]}; attempt i has layout i modulo their number. Prints for each spec {"kills", "within_save", "attempts", "steps"}:
within a save is a kill that leaves a partial folder; ``steps`` are those after which checkpoints were resumed.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from nemo_openmath.models import cpu_compat

cpu_compat.install()

from nemo_openmath.core.listening import free_port  # noqa: E402
from nemo_openmath.core.logs import configure_logging  # noqa: E402
from nemo_openmath.training.base_model import BaseModel  # noqa: E402
from nemo_openmath.training.runtime import start_process  # noqa: E402
from nemo_openmath.training.trainer import Trainer, train  # noqa: E402
from tests.support.ranks import training_config  # noqa: E402
from tests.training.packs import RandomPacks  # noqa: E402


def announce_steps(pipe: int, most: int | None) -> None:
    """Write to a pipe when a step begins; wait for the end before the one after ``most``. (Batches are read ahead by a
    thread.)"""
    train_step, begun = Trainer.train_step, itertools.count()

    def announced(*args: Any) -> float:
        if next(begun) == most:
            time.sleep(3600)
        os.write(pipe, b".")
        return train_step(*args)

    Trainer.train_step = announced


def rank_main(
    spec: dict[str, Any], config: dict[str, Any], ranks: tuple[int, int], port: int, pipe: int, most: int | None
) -> None:
    """Does not return. ``ranks``: this one, and how many there are."""
    rank, world = ranks
    code = 1
    try:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        start_process(timeout_minutes=20)
        source = RandomPacks(spec["steps"])
        if rank == 0:
            announce_steps(pipe, most)
        configure_logging(rank=rank)
        train(BaseModel.open(Path(spec["model"])), source, training_config(config), Path(spec["output"]))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def attempt(spec: dict[str, Any], number: int, chance: random.Random | None) -> bool:
    """One start of all ranks, killed unless ``chance`` is None; True when it came to its end."""
    world, config = spec["layouts"][number % len(spec["layouts"])]
    port, (reader, writer) = free_port("127.0.0.1"), os.pipe()
    ranks = []
    most = None if chance is None else chance.randint(1, 3)
    for rank in range(world):
        child = os.fork()
        if child == 0:
            rank_main(spec, config, (rank, world), port, writer, most)
        ranks.append(child)
    os.close(writer)
    if chance is not None and most is not None:
        took, before = 0.5, time.monotonic()
        for number in range(most):
            if not os.read(reader, 1):  # rank 0 is gone
                break
            took, before = (time.monotonic() - before if number else took), time.monotonic()
        time.sleep(chance.uniform(0, took))
        order = chance.sample(ranks, len(ranks))
        os.kill(order[0], signal.SIGKILL)
        time.sleep(chance.choice((0.0, chance.uniform(0, 0.2))))
        for child in order[1:]:
            os.kill(child, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks]
    os.close(reader)
    wrong = [code for code in codes if code not in (0, -signal.SIGKILL)]
    if wrong and -signal.SIGKILL not in codes:
        raise SystemExit(f"ranks ended by themselves: {codes}")
    return all(code == 0 for code in codes)


def sweep(spec: dict[str, Any]) -> dict[str, Any]:
    chance, checkpoints = random.Random(spec["seed"]), Path(spec["output"]) / "checkpoints"
    found: dict[str, Any] = {"kills": 0, "within_save": 0, "attempts": 0, "steps": []}
    finished = False
    while not finished:
        newest = max((int(p.name[5:]) for p in checkpoints.glob("step-*")), default=0)
        kill = found["kills"] < spec["kills"] and newest < spec["steps"]
        finished = attempt(spec, found["attempts"], chance if kill else None)
        found["attempts"] += 1
        found["steps"].append(newest)
        if kill and not finished:
            found["kills"] += 1
            found["within_save"] += bool(list(checkpoints.glob(".step-*.partial")))
    return found


if __name__ == "__main__":
    for file in sys.argv[1:]:
        print(json.dumps(sweep(json.loads(Path(file).read_text()))), flush=True)

"""Real gloo processes for tests: a module's own ranks run many cases in one spawn.

test:    run_ranks("tests.training.memory_ranks", 2, [{"model": ..., "output": ...}, ...], tmp_path)
module:  each rank calls run_cases(measure), once it has joined the group (``runtime.start_process``)
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from nemo_openmath.core.build import Builder, Origin
from nemo_openmath.core.listening import free_port
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.launch import spawn
from nemo_openmath.training.rank_processes import RankProcess, kill, watch
from nemo_openmath.training.runtime import end_groups_but, process_groups
from tests.support.rank_server import rank_server


def run_ranks(module: str, ranks: int, cases: Sequence[dict[str, Any]], folder: Path) -> None:
    """Run ``cases``, of JSON's values, one after another in ``ranks`` processes of ``python -m module``.

    ``folder`` gets the file of the cases. Raises RankFailed with the traceback of the first rank that died."""
    file = folder / f"cases-{ranks}.json"
    file.write_text(json.dumps(cases))
    if os.environ.get("OPENMATH_TEST_GPU"):
        spawn(ranks, [sys.executable, "-m", module, str(file)], on_line=lambda _: None)
        return
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1")), "GLOO_SOCKET_IFNAME": "lo"}
    started: list[RankProcess] = []
    try:
        for rank in range(ranks):
            environment = os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(RankProcess(rank_server().fork(module, [str(file)], environment)))
        watch(started, on_line=lambda _: None)
    finally:
        kill(started)


def run_cases(run: Callable[[dict[str, Any]], None]) -> NoReturn:
    """Run every case of the file that this process was started with; end the process at the first that fails.

    The process groups that a case has made end with it, also those that an error has left (``parallel_state_of``): all
    ranks have met it and go on."""
    kept = process_groups()
    for case in json.loads(Path(sys.argv[1]).read_text()):
        try:
            run(case)
        except Exception:
            print(f"case {case}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            _end(1)
        dist.barrier()
        end_groups_but(kept)
        gc.collect()  # models that are circles hold groups, too
        dist.barrier()
    _end(0)


def _end(code: int) -> NoReturn:
    """End this rank at once, and the processes in which megatron-core writes, which would wait for ever."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def training_config(fields: dict[str, Any]) -> TrainingConfig:
    """A case's settings, read as a job file's are."""
    return Builder(lambda _: Origin("test")).build(TrainingConfig, fields)

"""A rank of a training: ``python -m nemo_openmath.training.worker JOB.yaml [key=value ...]``.

:mod:`nemo_openmath.training.launch` starts the ranks of one machine; Slurm and torchrun do too, and describe the world
by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Exit codes are those of :class:`ExitCode`.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_openmath.core.errors import ExitCode, OpenMathError, UserError, of_the_system
from nemo_openmath.core.home import prepare_home
from nemo_openmath.core.logs import ConsoleHandler, configure_logging
from nemo_openmath.core.shared_files import until_seen
from nemo_openmath.training.config import TrainingJob
from nemo_openmath.training.failures import meaning
from nemo_openmath.training.job import read_job
from nemo_openmath.training.rank_watch import RankWatch, collective_timeout_s

if TYPE_CHECKING:
    from nemo_openmath.data.batches.packed_data import PackedData
    from nemo_openmath.training.base_model import BaseModel


def run_job(job: TrainingJob) -> None:
    """Train as ``job`` says, in this rank of a launched world. Raises what
    :func:`nemo_openmath.training.trainer.train` raises, and UserError for data that does not fit the model."""
    from nemo_openmath.training.runtime import start_process

    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    stated_s = job.training.hang_seconds
    with RankWatch(job.output, rank, ranks, stated_s) as watch:
        settings, timeout_minutes = job.training, collective_timeout_s(stated_s) / 60
        # before megatron-core is imported elsewhere (cpu_compat)
        start_process(settings.device, deterministic=settings.deterministic, timeout_minutes=timeout_minutes)
        _train(job, watch)


def _train(job: TrainingJob, watch: RankWatch) -> None:
    from nemo_openmath.training.agreement import alike
    from nemo_openmath.training.trainer import train

    base, source, held_out = alike(
        lambda: open_job(job), lambda opened: (repr(job), _view(opened)), "the job's model and data"
    )
    train(base, source, job.training, job.output, validation=held_out, watch=watch)


def open_job(job: TrainingJob) -> tuple[BaseModel, PackedData, PackedData | None]:
    """Return what a job reads: its model, its data, and what is held out. Raises UserError where they do not fit."""
    from nemo_openmath.data.batches.packed_data import PackedData
    from nemo_openmath.training.base_model import BaseModel, end_tokens

    base = BaseModel.open(job.model, job.model_changes)
    data, tokenizer = job.data, tokenizer_fingerprint(job.model)
    source = PackedData.open(
        data.folder,
        batch_samples=data.batch_samples,
        epochs=data.epochs,
        steps=data.steps,
        seed=data.seed,
        pad_multiple=1,  # batch_sharding.shard_batch pads for the layout
        tokenizer=tokenizer,
        validation_share=data.validation_share,
    )
    multiple = job.training.parallel.sample_multiple
    source.plan.require_multiple(multiple)
    longest, positions = source.plan.longest, base.config.max_position_embeddings
    if longest > positions:
        raise UserError(
            f"the longest sample has {longest} tokens, the model {positions} positions",
            file=data.folder,
            remedy="pack with a lower capacity, or raise the job's max_position_embeddings (and rope_theta)",
        )
    held_out = source.held_out
    if data.validation is not None:
        held_out = PackedData.open(
            data.validation, batch_samples=data.batch_samples, epochs=1, pad_multiple=1, tokenizer=tokenizer
        )
        held_out.plan.require_multiple(multiple)
    return replace(base, end_tokens=end_tokens(job.model, source.last_targets())), source, held_out


def _view(opened: tuple[BaseModel, PackedData, PackedData | None]) -> tuple[Any, ...]:
    base, source, held_out = opened
    return base.view(), base.end_tokens, source.fingerprint, source.num_steps, held_out and held_out.fingerprint


def tokenizer_fingerprint(model: Path) -> str | None:
    """Return the fingerprint of the model's tokenizer: token files made with another are refused. None where it has
    none."""
    from nemo_openmath.chat import ChatTokenizer
    from nemo_openmath.checkpoints.formats.step_folders import model_files_of

    folder = model_files_of(model)
    return ChatTokenizer.load(folder, chat=False).fingerprint if (folder / "tokenizer.json").is_file() else None


def _read_job(path: Path, overrides: list[str]) -> TrainingJob:
    """Read a job's file. Where a launcher wrote it on another node, this one may see it later."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        until_seen(lambda: "" if path.exists() else path.name, path.parent)
    return read_job(path, overrides)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line of this module's text. Rank 0 writes its lines to standard output, where the launcher reads
    them; errors go to standard error, behind the rank's number."""
    arguments = sys.argv[1:] if arguments is None else arguments
    rank = os.environ.get("RANK", "0")
    configure_logging(handler=ConsoleHandler("stdout"), rank=int(rank))
    try:
        prepare_home()
        if not arguments:
            raise UserError("no job file is named", remedy="python -m nemo_openmath.training.worker JOB.yaml")
        run_job(_read_job(Path(arguments[0]), arguments[1:]))
    except OpenMathError as error:
        print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except BaseException as error:  # torch.distributed.checkpoint has errors that are no Exception
        known = of_the_system(error) if isinstance(error, OSError) else None
        if known is None:
            print(f"rank {rank}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            known = meaning(error)
        if known is None:
            return int(ExitCode.FAILURE)
        print(f"rank {rank}: {known}", file=sys.stderr, flush=True)
        return int(known.exit_code)
    return int(ExitCode.OK)


if __name__ == "__main__":
    # No interpreter shutdown: a rank whose peers are gone would wait for them in destructors.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

"""Entry of a rank: ``python -m nemo_openmath.training.worker JOB.yaml [key=value ...]``, started by a launcher.

``launch_local.py`` starts the ranks of one machine; torchrun does too. Exit codes are :class:`ExitCode`'s.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_openmath.core.build import Builder
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import ExitCode, OpenMathError, UserError, of_the_system
from nemo_openmath.core.logs import ConsoleHandler, configure_logging
from nemo_openmath.training.config import TrainingConfig, TrainingJob

if TYPE_CHECKING:
    from nemo_openmath.models.configs import ModelConfig


def read_job(path: str | Path, overrides: list[str] | None = None) -> TrainingJob:
    """A job's file with ``a.b=value`` overrides; relative paths are relative to the file."""
    settings = {field.name for field in fields(TrainingConfig)}  # parallel.tp=2 is training.parallel.tp=2
    given = [f"training.{text}" if re.split(r"[.=]", text)[0] in settings else text for text in overrides or []]
    source = Source.read(path, given)
    return Builder(source.origin, Path(path).parent).build(TrainingJob, source.data)


def check_job(job: TrainingJob, processes: int) -> None:
    """Refuse what can be refused before any rank is started: a model that is missing or is not what it says, a layout
    that does not divide, a batch of more samples than there are, an output that another model was trained in."""
    from nemo_openmath.checkpoints.checkpoint import open_checkpoint  # torch takes seconds to import
    from nemo_openmath.data.packs.plan import PackPlan
    from nemo_openmath.training.used import refuse_used

    job.training.parallel.check(_shape(job), processes)
    plan = PackPlan(job.data.folder)
    plan.require_multiple(job.training.parallel.sample_multiple)
    check_batch(job.data.batch_samples, len(plan.entries), job.data.folder)
    open_checkpoint(job.model)
    refuse_used(job.output, job.model, _changes(job))


def check_batch(batch: int, samples: int, folder: Path) -> None:
    """Refuse a batch that goes through the data more than once: one step of it may take longer than the training that
    was meant."""
    if batch > samples > 0:
        raise UserError(
            f"batch_samples = {batch:,} is more than the {samples:,} samples there are: a step would take all of them",
            file=folder,
            remedy=f"choose {samples:,} or fewer",
        )


def _changes(job: TrainingJob) -> dict[str, Any]:
    names = ("rope_theta", "max_position_embeddings")
    return {name: getattr(job, name) for name in names if getattr(job, name) is not None}


def _shape(job: TrainingJob) -> ModelConfig:
    from nemo_openmath.models.configs import ModelConfig

    inside = job.model / "model"  # of a checkpoint folder
    folder = inside if (inside / "config.json").is_file() else job.model
    return ModelConfig.from_hf(folder).with_changes(**_changes(job))


def run_job(job: TrainingJob) -> None:
    """Train as ``job`` says, in this rank of a launched world."""
    from nemo_openmath.training.runtime import start_process

    start_process()  # before megatron-core is imported elsewhere (see cpu_compat)
    from nemo_openmath.data.batches.packed_data import PackedData
    from nemo_openmath.training.loop import train

    data, tokenizer = job.data, _tokenizer(job.model)
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
    longest, positions = source.plan.longest, _shape(job).max_position_embeddings
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
    train(
        *(job.model, source, job.training, job.output),
        validation=held_out,
        batch_samples=data.batch_samples,
        changes=_changes(job),
        ends=_ends(job.model, source.last_targets()),
        say=lambda line: print(line, flush=True),
    )


def _ends(model: Path, last: Counter[int]) -> tuple[int, ...]:
    """The tokens that the data teaches to end a text with, the most frequent first. A sample may also end in a word
    (it was cut, or its author went on): only tokens that stand for no text count."""
    from nemo_openmath.checkpoints.formats.step_folders import model_files_of
    from nemo_openmath.models.stop_tokens import special_ids

    special = special_ids(model_files_of(model))
    return tuple(token for token, _ in last.most_common() if token in special)


def _tokenizer(model: Path) -> str | None:
    """Fingerprint of the model's tokenizer: token files made with another are refused. None where it has none."""
    from nemo_openmath.chat import ChatTokenizer
    from nemo_openmath.checkpoints.formats.step_folders import model_files_of

    folder = model_files_of(model)
    return ChatTokenizer.load(folder, chat=False).fingerprint if (folder / "tokenizer.json").is_file() else None


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    configure_logging(handler=ConsoleHandler("stdout"), rank=int(os.environ.get("RANK", "0")))
    try:
        if not arguments:
            raise UserError("no job file is named", remedy="python -m nemo_openmath.training.worker JOB.yaml")
        run_job(read_job(arguments[0], arguments[1:]))
    except OpenMathError as error:
        print(f"rank {os.environ.get('RANK', '0')}: {error}", file=sys.stderr, flush=True)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except OSError as error:
        known = of_the_system(error)
        said = str(known) if known is not None else f"\n{traceback.format_exc()}"
        print(f"rank {os.environ.get('RANK', '0')}: {said}", file=sys.stderr, flush=True)
        return int(known.exit_code if known is not None else ExitCode.FAILURE)
    except BaseException:  # torch.distributed.checkpoint has errors that are no Exception
        print(f"rank {os.environ.get('RANK', '0')}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return int(ExitCode.FAILURE)
    return int(ExitCode.OK)


if __name__ == "__main__":
    # No interpreter shutdown: a rank whose peers are gone would wait for them in destructors.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

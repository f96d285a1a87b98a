"""Sections of gpu.py: whole trainings that are resumed, repeated and certified."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from gpu_inputs import RandomSource, config, random_model

from nemo_openmath.checkpoints.checkpoint import open_checkpoint
from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.models.configs import ModelConfig, preset
from nemo_openmath.training.base_model import BaseModel
from nemo_openmath.training.certificate.certify import CertifiedData, make_certificate
from nemo_openmath.training.certificate.faults.batch import Layouts
from nemo_openmath.training.certificate.files import TOLERANCES
from nemo_openmath.training.certificate.first_step import CERTIFICATE
from nemo_openmath.training.certificate.report import NotCertified
from nemo_openmath.training.trainer import train

if TYPE_CHECKING:
    from gpu import Report

TINY = preset("tiny").with_changes(head_dim=16, tie_word_embeddings=False)  # of attention's kernels: at least 16


def losses_of(output: Path) -> list[float]:
    """Return the losses that a training wrote, step by step."""
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def save(report: Report) -> None:
    """A training whose last steps are lost goes on to the same losses."""
    with tempfile.TemporaryDirectory() as place:
        root, source = Path(place), RandomSource(TINY.vocab_size, 8)
        random_model(root / "model", TINY)
        base = BaseModel.open(root / "model", quiet=True)
        for sharded in (False, True):
            name = "distributed optimizer" if sharded else "whole optimizer"
            checkpoints = {"every": 2, "keep_last": 0, "asynchronous": True}
            chosen = config(
                precision="bf16", backend="local", lr=1e-3, distributed_optimizer=sharded, checkpoints=checkpoints
            )
            whole, resumed = root / f"whole {sharded}", root / f"resumed {sharded}"
            train(base, source, chosen, whole)
            train(base, source, chosen, resumed)
            for late in (6, 8):  # as if it had been killed after step 4
                shutil.rmtree(step_folders.step_folder(resumed / "checkpoints", late))
            train(base, source, chosen, resumed)
            newest, skipped = step_folders.newest_valid(step_folders.list_checkpoints(resumed / "checkpoints"))
            is_last = newest is not None and newest.name == step_folders.step_folder(root, 8).name
            report.at_least(f"{name}: the last checkpoint is whole", is_last and not skipped, 1)
            pairs = list(zip(losses_of(whole), losses_of(resumed), strict=True))
            report.at_least(f"{name}: steps in metrics.jsonl", len(pairs), 8)
            report.below(f"{name}: largest gap of a loss", max(abs(a - b) for a, b in pairs), 2e-3)
            report.below(f"{name}: the last loss over the first", pairs[-1][1] / pairs[0][1], 1.0)


def deterministic(report: Report) -> None:
    """Two trainings compute the same bits."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        shape = TINY if report.dry else ModelConfig(4096, 1024, 2816, 6, 8, 2, 128, max_position_embeddings=8192)
        lengths = ((37, 23, 5), (60, 9)) if report.dry else ((2000, 1300, 701, 95), (3900, 190))
        source = RandomSource(shape.vocab_size, 3 if report.dry else 6, lengths)
        random_model(root / "model", shape)
        base = BaseModel.open(root / "model", quiet=True)
        chosen = config(precision="bf16", backend="local", lr=1e-3, deterministic=True)
        for name in ("first", "second"):
            train(base, source, chosen, root / name)
        losses = [losses_of(root / name) for name in ("first", "second")]
        differing = sum(a != b for a, b in zip(*losses, strict=True))
        report.below("losses that differ", differing, 1, steps=len(losses[0]))
        first, second = (
            open_checkpoint(step_folders.step_folder(root / name / "checkpoints", source.num_steps))
            for name in ("first", "second")
        )
        unequal = [name for name in first.tensors if not torch.equal(first.read(name), second.read(name))]
        report.below("tensors that differ", len(unequal), 1, tensors=len(first.tensors), differing=unequal[:3])


def certify(report: Report) -> None:
    """The first step against its certificate, and a training with late masks, which must be refused."""
    with tempfile.TemporaryDirectory() as place:
        root, source = Path(place), RandomSource(TINY.vocab_size, 1, trained=0.5)
        random_model(root / "model", TINY, std=0.3)  # losses of tokens that differ: a late mask shows
        base = BaseModel.open(root / "model", quiet=True)
        data = CertifiedData([source.batch(0)], {"digest": source.fingerprint}, capacity=0, pad_multiple=1)
        certificate = make_certificate(base, data, Layouts(cp=(), dp=()), "bf16")
        chosen = config(precision="bf16", backend="local", certify=True)
        late = RandomSource(TINY.vocab_size, 1, trained=0.5, late=1)
        for name, batches in (("right", source), ("late", late)):
            (root / name).mkdir()
            certificate.write(root / name / CERTIFICATE)
            message = ""
            try:
                train(base, batches, chosen, root / name)
            except NotCertified as error:
                message = str(error)
            if name == "right":
                report.at_least("a right first step passes", not message, 1, message=message)
                if not message:
                    gap = abs(losses_of(root / name)[0] / certificate.steps[0].loss - 1)
                    report.below("loss of the first step", gap, TOLERANCES["bf16"])
            else:
                report.at_least("masks a token late are refused", bool(message), 1, message=message)

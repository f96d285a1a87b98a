"""Sharding a batch loses no sample and changes none; the learning rate's corners; which checkpoints last."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nemo_openmath.checkpoints.formats.step_folders import step_folder
from nemo_openmath.core.errors import UserError
from nemo_openmath.data.batches.batch_sharding import shard_batch
from nemo_openmath.data.packs.pack import Pack, samples_of
from nemo_openmath.data.packs.write import Mixture, write_packs
from nemo_openmath.data.tokens.token_file import ShardWriter, write_manifest
from nemo_openmath.models.configs import preset
from nemo_openmath.models.layout import Parallel
from nemo_openmath.models.packed import zigzag
from nemo_openmath.training.checkpoint import CheckpointStore
from nemo_openmath.training.config import Checkpoints, DataConfig, Guard, Profile, TrainingConfig
from nemo_openmath.training.forward_backward import check_tokens
from nemo_openmath.training.job import check_job, read_job
from nemo_openmath.training.metrics import LossGuard, TrainingDiverged, TrainingMetrics, console_line
from nemo_openmath.training.schedule import learning_rate
from tests.checkpoints import models

batches = st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=6), min_size=1, max_size=6)
layouts = st.sampled_from(
    [
        Parallel(),
        Parallel(cp=2),
        Parallel(tp=2, sequence_parallel=True),
        Parallel(tp=4, cp=2, sequence_parallel=True),
        Parallel(pp=2, vpp=2),
        Parallel(pp=3, cp=4),
    ]
)


def _pack(number: int, lengths: list[int]) -> Pack:
    cu = np.cumsum([0, *lengths]).astype(np.int32)
    random = np.random.default_rng(number)
    tokens, labels = (random.integers(1, 1000, cu[-1]).astype(np.int32) for _ in range(2))
    return Pack(tokens, labels, random.random(cu[-1]) < 0.7, cu, tuple(f"{number}/{i}" for i in range(len(lengths))))


@settings(max_examples=60, deadline=None)
@given(batches, st.integers(1, 5), layouts)
def test_every_sample_is_on_one_rank_and_unchanged(batch: list[list[int]], ranks: int, parallel: Parallel) -> None:
    packs = [_pack(i, lengths) for i, lengths in enumerate(batch)]
    shares = shard_batch(packs, ranks, parallel)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    assert parallel.vpp == 1 or len(shares[0]) % parallel.pp == 0
    if parallel.pp > 1:
        assert len({len(pack.tokens) for share in shares for pack in share}) == 1
    seen = {}
    for share in shares:
        for pack in share:
            assert len(pack.tokens) % parallel.pack_multiple == 0
            assert all(n % parallel.sample_multiple == 0 for n in np.diff(pack.cu_seqlens))
            for sample in samples_of(pack):
                if sample.sample_ids == ("",):
                    assert not sample.loss_mask.any()
                else:
                    assert sample.sample_ids not in seen
                    seen[sample.sample_ids] = sample
    for pack in packs:
        for sample in samples_of(pack):
            got, n = seen.pop(sample.sample_ids), len(sample.tokens)
            for field in ("tokens", "labels", "loss_mask"):
                assert np.array_equal(getattr(got, field)[:n], getattr(sample, field))
            assert not got.loss_mask[n:].any()
    assert not seen


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4))
def test_zigzag_shares_every_sample_evenly(chunks: list[int], cp: int) -> None:
    cu = [0, *np.cumsum([2 * cp * n for n in chunks]).tolist()]
    held = [zigzag(cu, cp, rank) for rank in range(cp)]
    assert sorted(np.concatenate(held).tolist()) == list(range(cu[-1]))
    for a, b in pairwise(cu):  # causal cost: a token costs its position
        costs = {int((h[(h >= a) & (h < b)] - a).sum()) for h in held}
        assert len(costs) == 1


def test_learning_rate() -> None:
    config = TrainingConfig(lr=3e-4, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(3e-5)
    assert max(rates) == rates[9] == pytest.approx(3e-4)
    assert rates[-1] == pytest.approx(3e-7)  # a thousandth, at the last update
    assert all(b < a for a, b in pairwise(rates[9:]))
    middle = 3e-7 + (3e-4 - 3e-7) * 0.5 * (1 + math.cos(math.pi * 45 / 90))
    assert rates[54] == pytest.approx(middle)
    constant = TrainingConfig(lr=1e-5, schedule="constant", warmup=0.0)
    assert {learning_rate(step, 400, constant) for step in range(400)} == {1e-5}


def test_lasting_checkpoints() -> None:
    """The recipe: 4 equally spaced of 30000; figure 4: 0.75, 1.5, 3 and 6 epochs."""
    assert Checkpoints(average_k=4).lasting(30000, 5000.0) == (7500, 15000, 22500, 30000)
    assert Checkpoints(epochs=(0.75, 1.5, 3, 6)).lasting(30000, 5000.0) == (3750, 7500, 15000, 30000)
    assert Checkpoints(steps=(400, 900)).lasting(500, 1.0) == (400, 500)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_stops_with_the_samples_named(loss: float, norm: float) -> None:
    guard, names = LossGuard(Guard()), _pack(3, [4, 5]).sample_ids
    guard.check(6, 1.0, 1.0, names)
    with pytest.raises(TrainingDiverged, match=r"step 7; weights unchanged; samples of the batch: 3/0, 3/1$"):
        guard.check(7, loss, norm, names)


def test_a_spike_is_over_the_running_mean() -> None:
    guard = LossGuard(Guard(spike_factor=2.0, window=3))
    for step, loss in enumerate((1.0, 9.0, 2.0)):  # no mean of three yet
        guard.check(step, loss, 1.0, ("a",))
    guard.check(3, 7.9, 1.0, ("a",))  # mean 4
    for same in (guard, LossGuard(Guard(spike_factor=2.0, window=3), guard.recent)):  # and after a resume
        with pytest.raises(TrainingDiverged):
            same.check(4, 12.7, 1.0, ("a",))  # mean 6.3


def test_a_resume_leaves_one_line_for_each_step(tmp_path: Path) -> None:
    """Killed after saving step 4 with its line not yet written, and with lines of steps to be done again."""
    log = tmp_path / "metrics.jsonl"
    for lines, kept in (("123", "123"), ("12356", "123"), ("1234567", "1234"), ("123412", "1234")):
        log.write_text("".join(f'{{"step": {n}, "loss": {n}.5}}\n' for n in lines) + '{"step": 8, "lo')
        TrainingMetrics(tmp_path, TrainingConfig(), 4, {"step": 4, "loss": 4.25}).close()
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert rows[3]["loss"] == (4.5 if "4" in kept else 4.25)


def test_lines_of_every_step_whatever_is_shown(tmp_path: Path) -> None:
    metrics = TrainingMetrics(tmp_path, TrainingConfig(log_every=3), 0)
    for step in (1, 2, 3):
        metrics.write({"step": step}, boards=step == 3)
    metrics.close()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_tensorboard_shows_steps_done_again_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed = TrainingMetrics(tmp_path, TrainingConfig(tensorboard=True), 0)
    for step in range(1, 7):
        killed.write({"step": step, "loss": 1.0})
    killed._board.flush()
    resumed = TrainingMetrics(tmp_path, TrainingConfig(tensorboard=True), 4)
    for step in (5, 6, 7):
        resumed.write({"step": step, "loss": 2.0})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0), (7, 2.0)]


def test_a_token_outside_the_vocabulary_names_its_sample() -> None:
    pack = _pack(5, [4, 3])
    pack.tokens[5] = 1000
    check_tokens([pack], 1001)
    with pytest.raises(UserError, match="sample 5/1: token 1000 is outside the model's vocabulary of 1000; "):
        check_tokens([pack], 1000)


def test_damaged_later_checkpoints_do_not_push_out_good_ones(tmp_path: Path) -> None:
    """Resumed before a damaged step 6 with keep_last 1: what is saved at step 2, then 4, stays until the next."""
    store = CheckpointStore.__new__(CheckpointStore)  # without process groups
    store.root, store.lasting, store.keep_last = tmp_path, frozenset({3}), 1
    step_folder(tmp_path, 6).mkdir()
    for step in (2, 3, 4):
        step_folder(tmp_path, step).mkdir()
        store._remove_old(step)
        assert step_folder(tmp_path, step).is_dir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004", "step-00000006"]


def test_a_line_for_people() -> None:
    record = {"step": 3, "loss": 1.5, "grad_norm": 0.25, "lr": 1e-4, "tokens_per_second": 12345.6, "seconds": 2.0}
    line = console_line({**record, "mfu": 0.41, "fill": 0.98, "peak_memory_bytes": 3 << 30}, 9)
    expected = "step 3/9  loss 1.5000  grad 0.250  lr 1.00e-04  12,346 tok/s  2.00s  MFU 41%  fill 98%  3.0 GiB"
    assert line == expected


def _packs_of_six(folder: Path) -> None:
    folder.mkdir()
    with ShardWriter(folder / "00000.tokens", tokenizer="t", vocab_size=300, source="s") as writer:
        for name in "abcdef":
            writer.add(name, "cot", np.arange(4), [False, True, True, True])
        writer.finish({})
    write_manifest(folder, ["00000.tokens"])
    write_packs(folder, capacity=32, pad_multiple=4, mixture=Mixture([["cot"]], {"cot": 1.0}))


def test_a_job_is_refused_before_ranks_start(tmp_path: Path) -> None:
    models.make(tmp_path / "hf", preset("tiny"))
    packs = "data: {folder: packs, steps: 4, batch_samples: 6}"
    (tmp_path / "job.yaml").write_text(f"{{model: hf, {packs}, output: out}}")
    with pytest.raises(UserError, match=r"packs\.plan: no such file"):
        check_job(read_job(tmp_path / "job.yaml"), 1)
    _packs_of_six(tmp_path / "packs")
    job = read_job(tmp_path / "job.yaml", ["parallel.tp=2", "lr=1e-5", "training.parallel.cp=2"])
    assert (job.training.parallel.tp, job.training.parallel.cp, job.training.lr) == (2, 2, 1e-5)
    check_job(job, 8)
    with pytest.raises(UserError, match="6 processes are not a multiple"):
        check_job(job, 6)
    with pytest.raises(UserError, match=r"packed with pad_multiple = 4, the layout .* 8 "):
        check_job(read_job(tmp_path / "job.yaml", ["parallel.cp=4"]), 8)
    with pytest.raises(UserError, match=r"batch_samples = 7 is more than the 6 samples there are.*choose 6 or fewer"):
        check_job(read_job(tmp_path / "job.yaml", ["data.batch_samples=7"]), 1)
    save_file({**models.random_tensors(preset("tiny")), "x": torch.ones(1)}, tmp_path / "hf/model.safetensors")
    with pytest.raises(UserError, match="no place for x"):
        check_job(job, 8)
    with pytest.raises(UserError, match=r"keep_last: -1 is out of range"):
        read_job(tmp_path / "job.yaml", ["checkpoints.keep_last=-1"])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TrainingConfig(lr=0.0), "training.lr = 0.0; choose it above 0"),
        (lambda: TrainingConfig(clip=-1.0), "training.clip = -1.0; choose it 0 or more"),
        (lambda: TrainingConfig(log_every=0), "training.log_every = 0; choose it 1 or more"),
        (lambda: TrainingConfig(lr=math.nan), "training.lr = nan; choose it above 0"),
        (lambda: TrainingConfig(beta2=1.0), "training.beta2 = 1.0; choose it from 0 to below 1"),
        (lambda: Guard(spike_factor=-1.0), "guard.spike_factor = -1.0; choose 0 (off)"),
        (lambda: Checkpoints(epochs=(0.75, -1.5)), "checkpoints.epochs holds -1.5; choose numbers above 0"),
        (lambda: Profile(steps=(0,)), "profile.steps holds 0; choose 1 or more"),
        (lambda: DataConfig(Path("packs"), validation_share=1.0), "validation_share = 1.0; choose it from 0"),
        (lambda: DataConfig(Path("a"), validation=Path("b"), validation_share=0.1), "are both given"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert says in str(caught.value)

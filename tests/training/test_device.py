"""Which device a rank takes, and what it does there: on CUDA that is pretended."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from nemo_openmath.core.errors import MachineFailure, MissingExtra, UserError
from nemo_openmath.models import build, cpu_compat
from nemo_openmath.models.configs import preset
from nemo_openmath.models.layout import Parallel
from nemo_openmath.training import runtime
from nemo_openmath.training.checkpoint import writing_thread
from nemo_openmath.training.choose_device import SeenGpus, agree_on_device, choose_device, refuse_few_gpus, seen_gpus
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.device import measured_flops, peak_flops, peak_memory_bytes
from tests.support.fake_cuda import GIB, fake_cuda

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def eight(nodes: int = 1, visible: int = 8) -> list[SeenGpus]:
    """What 8 ranks a node see, where each has all of the node's GPUs before it."""
    return [
        SeenGpus(f"n{node}", visible, i % visible, f"GPU-{node}-{i % visible}") if visible else SeenGpus(f"n{node}", 0)
        for node in range(nodes)
        for i in range(8)
    ]


def test_a_rank_has_a_gpu_of_its_own_or_all_have_none() -> None:
    two_nodes = eight(2)
    assert [choose_device("auto", two_nodes, rank).index for rank in (0, 7, 8, 15)] == [0, 7, 0, 7]
    bound = [SeenGpus("n0", 1, 0, f"GPU-{rank}") for rank in range(4)]  # Slurm shows each task one GPU
    assert [choose_device("cuda", bound, rank) for rank in range(4)] == [GPU] * 4
    assert choose_device("cpu", two_nodes, 3) == CPU
    assert choose_device("auto", eight(2, visible=0), 3) == CPU


def test_ranks_share_no_gpu(caplog: pytest.LogCaptureFixture) -> None:
    workstation = [SeenGpus("pc", 1, 0, "GPU-a")] * 2
    assert choose_device("auto", workstation, 1) == CPU
    assert not caplog.records
    assert choose_device("auto", workstation, 0) == CPU
    assert "2 ranks on pc have 1 of its GPUs to compute on: training on the CPU" in caplog.text
    for choice, seen in (("cuda", workstation), ("auto", eight(2, visible=4))):
        with pytest.raises(UserError, match=r"ranks on .* have [14] of its GPUs.* start as many ranks as GPUs"):
            choose_device(choice, seen, 0)  # type: ignore[arg-type]


def test_more_processes_than_gpus_are_refused_before_they_start() -> None:
    with fake_cuda(devices=2):
        refuse_few_gpus("cuda", 2)
        refuse_few_gpus("auto", 3)
        with pytest.raises(UserError, match=r"3 processes, and torch sees 2 GPUs; start 2 processes"):
            refuse_few_gpus("cuda", 3)
    with pytest.raises(UserError, match=r"1 processes, and torch sees 0 GPUs; .* training\.device to cpu"):
        refuse_few_gpus("cuda", 1)


def test_a_job_with_gpus_never_computes_on_the_cpu_unasked() -> None:
    blind = [replace(gpus, promised=True) for gpus in eight(1, visible=0)]
    with pytest.raises(UserError, match=r"sees no GPU on n0.*--nv.*training\.device to cpu"):
        choose_device("auto", blind, 0)
    with pytest.raises(UserError, match="sees no GPU on n0, n1"):
        choose_device("cuda", eight(2, visible=0), 0)
    assert choose_device("cpu", blind, 0) == CPU
    with pytest.raises(MachineFailure, match="no GPU is seen on n1, but on other nodes"):
        choose_device("auto", [*eight(1), *(replace(gpus, node="n1") for gpus in blind)], 0)
    shared = [SeenGpus("n0", 1, 0, "GPU-a", promised=True)] * 2
    with pytest.raises(UserError, match="2 ranks on n0 have 1"):
        choose_device("auto", shared, 0)


def test_what_a_rank_sees() -> None:
    slurm = {"SLURM_GPUS_ON_NODE": "4", "LOCAL_RANK": "3"}
    with fake_cuda(devices=4):
        gpus = seen_gpus(slurm)
        assert (gpus.visible, gpus.index, gpus.uuid, gpus.promised) == (4, 3, "GPU-3", True)
    with fake_cuda(devices=1):
        assert seen_gpus(slurm).index == 0
    assert (seen_gpus(slurm).visible, seen_gpus(slurm).promised) == (0, True)
    assert not seen_gpus(slurm | {"CUDA_VISIBLE_DEVICES": ""}).promised
    assert not seen_gpus({}).promised


class _Started:
    """A group of ``ranks`` that is not joined: ``calls`` are the options of init_process_group, and the current GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int):
        self.calls: list[dict[str, Any]] = []
        store = dist.HashStore()
        for other in range(ranks):  # what the others have told
            store.set(f"gpus/{other}", f'{{"node": "n", "visible": {ranks}, "index": {other}, "uuid": "GPU-{other}"}}')
        monkeypatch.setattr(runtime, "rendezvous", lambda *_, **__: iter([(store, rank, ranks)]))
        monkeypatch.setattr(dist, "init_process_group", self._join)
        # what it does to a process lasts
        monkeypatch.setattr(cpu_compat, "install", lambda: self.order.append("megatron-core"))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        self.order: list[str] = []

    def _join(self, backend: str, **options: Any) -> None:
        self.order.append("join")
        self.calls.append({"backend": backend, **options})


def test_a_rank_takes_its_gpu_before_anything_else_opens_one(monkeypatch: pytest.MonkeyPatch) -> None:
    started = _Started(monkeypatch, rank=3, ranks=4)
    with fake_cuda(devices=4) as cuda:
        assert runtime.start_process() == torch.device("cuda", 3)
        assert (torch.cuda.current_device(), cuda.names()) == (3, ["set_device"])
        [options] = started.calls
    assert (options["backend"], options["device_id"]) == ("nccl", torch.device("cuda", 3))
    assert started.order == ["megatron-core", "join"]


def test_a_rank_on_the_cpu_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    started = _Started(monkeypatch, rank=1, ranks=2)
    with fake_cuda(devices=2) as cuda:
        assert runtime.start_process("cpu") == CPU
        assert (torch.cuda.is_available(), torch.cuda.device_count(), cuda.calls) == (False, 0, [])
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert (started.calls[0]["backend"], started.calls[0]["device_id"]) == ("gloo", None)


def test_more_ranks_than_gpus_agree_on_the_cpu() -> None:
    store = dist.HashStore()
    store.set("gpus/0", '{"node": "x", "visible": 1, "index": 0, "uuid": "GPU-0"}')
    with fake_cuda(devices=1), pytest.MonkeyPatch.context() as patch:
        patch.setattr("nemo_openmath.training.choose_device.node_name", lambda: "x")
        patch.delenv("SLURM_GPUS_ON_NODE", raising=False)
        assert agree_on_device("auto", store, 1, 2) == CPU


def test_the_writer_of_checkpoints_opens_no_other_gpu(tmp_path: Path) -> None:
    """PyTorch's own writer, in the thread that saves: all it asks CUDA for is on this rank's GPU."""
    with fake_cuda(devices=8) as cuda:
        torch.cuda.set_device(5)
        with writing_thread(torch.device("cuda", 5)) as pool:
            writer = FileSystemWriter(tmp_path / "state", single_file_per_rank=True, sync_files=False)
            state = {"weight": torch.arange(64.0)}
            pool.submit(state_dict_saver.save, state, storage_writer=writer, no_dist=True).result()
        assert "current_stream" in cuda.names()
        assert cuda.devices_in_use == {5}
    with writing_thread(CPU) as pool:
        assert pool.submit(int).result() == 0


def test_speed_and_memory_are_those_of_the_device() -> None:
    with fake_cuda(name="NVIDIA H200", memory_bytes=140 * GIB) as cuda:
        assert peak_flops("bf16", GPU) == pytest.approx(989e12, rel=0.01)
        assert not cuda.calls  # the data sheet's
        tensor = torch.zeros(1 << 20, device=GPU)
        assert peak_memory_bytes(GPU) == tensor.nbytes == 4 << 20
        assert peak_memory_bytes(CPU) > 32 << 20
        assert peak_flops("bf16", CPU) < 1e14
    assert measured_flops("fp32", CPU) > 1e8


@pytest.fixture
def transformer_engine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """TransformerEngine as megatron-core finds it; ``HAVE_TE`` may be set to False."""
    from megatron.core.extensions import transformer_engine as extension

    find_spec = build.importlib.util.find_spec
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda n: n == "transformer_engine" or find_spec(n))
    monkeypatch.setattr(extension, "HAVE_TE", True)
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb_thd", object())
    return extension


def test_transformer_engine_is_for_bf16_on_gpus(transformer_engine: Any) -> None:
    bf16, fp32 = torch.bfloat16, torch.float32
    assert build.choose_backend("auto", bf16, GPU) == "transformer_engine"
    assert build.choose_backend("transformer_engine", bf16, GPU) == "transformer_engine"
    assert {build.choose_backend("auto", fp32, GPU), build.choose_backend("auto", bf16, CPU)} == {"local"}
    assert build.choose_backend("local", bf16, GPU) == "local"
    with pytest.raises(UserError, match=r"transformer_engine: it multiplies fp32 in TF32.*backend to local"):
        build.choose_backend("transformer_engine", fp32, GPU)
    with pytest.raises(UserError, match="computes on GPUs alone"):
        build.choose_backend("transformer_engine", bf16, CPU)
    transformer_engine.HAVE_TE = False  # a version whose modules have moved
    assert build.choose_backend("auto", bf16, GPU) == "local"
    with pytest.raises(UserError, match="megatron-core cannot import from the version"):
        build.choose_backend("transformer_engine", bf16, GPU)


def test_transformer_engine_that_cannot_be_is_refused_by_name() -> None:
    assert build.choose_backend("auto", torch.bfloat16, GPU) == "local"
    with pytest.raises(MissingExtra):
        build.choose_backend("transformer_engine", torch.bfloat16, GPU)
    with pytest.raises(UserError, match=r"TF32 where training\.precision = fp32"):
        TrainingConfig(backend="transformer_engine")
    with pytest.raises(UserError, match=r"training\.device = cpu"):
        TrainingConfig(backend="transformer_engine", precision="bf16", device="cpu")


def test_transformer_engines_layers_are_fused_and_ours_are_not(transformer_engine: Any) -> None:
    options = {"dtype": torch.bfloat16, "device": GPU}
    with_it = build.transformer_config(preset("tiny"), Parallel(), backend="transformer_engine", **options)
    assert with_it.apply_rope_fusion
    assert with_it.bias_activation_fusion
    assert not with_it.use_cpu_initialization
    assert with_it.deallocate_pipeline_outputs
    ours = build.transformer_config(preset("tiny"), Parallel(), **options)
    assert not ours.apply_rope_fusion
    assert not ours.bias_activation_fusion
    layer = torch.nn.Linear(1, 1)
    layer.fuse_wgrad_accumulation = False
    build.accumulate_in_main_gradients([torch.nn.Sequential(layer, torch.nn.ReLU())])
    assert layer.fuse_wgrad_accumulation
    assert not with_it.gradient_accumulation_fusion  # megatron-core's output layer would ask for Apex


def test_one_table_of_angles_is_kept() -> None:
    with fake_cuda():
        rotary = RotaryEmbedding(8, 1.0)
        build.keep_one_table_of_angles(rotary)
        tables = [rotary(length, packed_seq=True) for length in (64, 32, 48, 48)]
        assert tables[3].is_cuda
        assert torch.equal(tables[3], rotary.get_emb(48))
    assert tables[3] is tables[2]
    assert rotary.forward.cache_info().currsize == 1


def test_deterministic_is_set_before_cuda_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUBLAS_WORKSPACE_CONFIG", "NVTE_ALLOW_NONDETERMINISTIC_ALGO", "NCCL_ALGO"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    _Started(monkeypatch, rank=0, ranks=1)
    try:
        runtime.start_process("cpu", deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert build.transformer_config(preset("tiny"), Parallel()).deterministic_mode
    finally:
        torch.use_deterministic_algorithms(False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert (os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"], os.environ["NCCL_ALGO"]) == ("0", "^NVLS")
    assert not build.transformer_config(preset("tiny"), Parallel()).deterministic_mode

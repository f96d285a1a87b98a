"""Parameter counts, the recipe's layouts, what is refused, and the command as a user types it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.models.configs import preset
from nemo_openmath.models.layout import Parallel, Recompute
from nemo_openmath.training.planning import memory
from nemo_openmath.training.planning.gpus import gpu, gpu_of_device
from nemo_openmath.training.planning.layouts import estimate, layouts, make_plan, with_exchange
from nemo_openmath.training.planning.memory import Layout
from nemo_openmath.training.planning.speed import micro_batches
from nemo_openmath.training.planning.workload import PlanOptions, read_workload

RECIPE = {  # arXiv 2504.16891: parameters, and the reference's layout of each size
    "qwen2.5-math-1.5b": (1_543_714_304, Parallel(tp=1, cp=2)),
    "qwen2.5-math-7b": (7_615_616_512, Parallel(tp=4, cp=2)),
    "qwen2.5-14b": (14_770_033_664, Parallel(tp=8, cp=2)),
    "qwen2.5-32b": (32_763_876_352, Parallel(tp=8, cp=4)),
}


@pytest.mark.parametrize("name", RECIPE)
def test_parameters_of_one_rank_and_of_all(name: str) -> None:
    """A single rank holds the paper's counts; TP x PP ranks hold them once, but norms on each tensor rank and a
    tied embedding on both end stages."""
    model, count = preset(name), RECIPE[name][0]
    assert memory.stage_parameters(model, Parallel(), 0) == count
    tp, pp = 2, 4
    norms = (2 * model.num_hidden_layers + 1) * model.hidden_size
    twice = model.vocab_size * model.hidden_size if model.tie_word_embeddings else 0
    stored = tp * sum(memory.stage_parameters(model, Parallel(tp=tp, pp=pp), stage) for stage in range(pp))
    assert stored == count + (tp - 1) * norms + twice


@pytest.mark.parametrize("name", RECIPE)
@pytest.mark.parametrize("gpus", [64, 512])
def test_the_recipes_layouts_fit(name: str, gpus: int) -> None:
    """On H100s with packs of 32768, with and without sequence parallelism; 1.5B and 7B without recomputation too."""
    work = read_workload(name, (), PlanOptions(capacity=32768, batch_samples=1024))
    fits = {choice.layout for choice in make_plan(work, gpu("h100"), gpus).fits}
    parallel = RECIPE[name][1]
    for split in (False, True) if parallel.tp > 1 else (False,):
        sizes = replace(parallel, sequence_parallel=split)
        assert Layout(sizes, gpus // parallel.model_parallel, True, "full") in fits


def test_layouts_are_those_the_trainer_accepts_and_come_fastest_first() -> None:
    plan = make_plan(read_workload("qwen2.5-math-7b"), gpu("h100"), 32)
    model, times = plan.work.model, [choice.time.total for choice in plan.fits]
    assert times == sorted(times)
    assert len({choice.layout for choice in plan.fits}) == len(plan.fits)
    assert all(choice.memory.total <= plan.gpu.memory and choice.layout.gpus == 32 for choice in plan.fits)
    assert all(choice.layout.parallel.check(model, 32) == choice.layout.data_parallel for choice in plan.fits)
    assert all(0 < choice.mfu <= plan.mfu for choice in plan.fits)
    tried = {layout.parallel.tp for layout in layouts(plan.work, plan.gpu, 32)}
    assert tried == {1, 2, 4}  # 4 KV heads: the trainer refuses 8


@pytest.mark.parametrize("pp", [1, 2, 4, 8])
@pytest.mark.parametrize("tied", [False, True])
def test_no_stage_needs_more_than_is_said(pp: int, tied: bool) -> None:
    """Not all stages are computed: what is left out is never the fullest."""
    model = preset("qwen2.5-32b").with_changes(tie_word_embeddings=tied)
    for vpp in (1, 2) if pp > 1 else (1,):
        for sizes in ((1, 1), (4, 2)):
            layout = Layout(Parallel(tp=sizes[0], pp=pp, cp=sizes[1], vpp=vpp), 2, True, "none")
            for packs in (1, 3, 64):
                of_stages = [
                    memory._stage(model, layout, stage, 16384, packs, "bf16", 0.7, None) for stage in range(pp)
                ]
                said = memory.memory(model, layout, capacity=16384, micro_batches=packs, target_share=0.7)
                assert said == max(of_stages, key=lambda stage: stage.total)


def test_what_each_kind_of_parallelism_saves() -> None:
    """Tensor, context and sequence parallelism, recomputation and the distributed optimizer lower what they should;
    the first pipeline stage holds as many micro-batches as there are stages."""
    work = read_workload("qwen2.5-14b")

    def memory_of(parallel: Parallel, dp: int = 8, shared: bool = True, recompute: Recompute = "none") -> memory.Memory:
        return estimate(work, Layout(parallel, dp, shared, recompute), gpu("h200")).memory

    plain = memory_of(Parallel(tp=4))
    assert memory_of(Parallel(tp=8)).weights == pytest.approx(plain.weights / 2, rel=0.001)
    assert memory_of(Parallel(tp=4, cp=2)).activations < 0.6 * plain.activations
    assert memory_of(Parallel(tp=4, cp=2)).optimizer == pytest.approx(plain.optimizer / 2, rel=1e-6)
    assert memory_of(Parallel(tp=4, sequence_parallel=True)).activations < plain.activations
    assert memory_of(Parallel(tp=4), recompute="full").activations < 0.2 * plain.activations
    assert memory_of(Parallel(tp=4), shared=False).optimizer == pytest.approx(8 * plain.optimizer, rel=1e-6)
    assert [memory.in_flight(Parallel(pp=4), stage, 100) for stage in range(4)] == [4, 3, 2, 1]
    assert [memory.in_flight(Parallel(pp=4), 0, few) for few in (1, 2)] == [1, 2]
    # chunks of L / 8 layers: 5.5 micro-batches' worth of 4
    assert memory.in_flight(Parallel(pp=4, vpp=2), 0, 100) == 11
    interleaved = Layout(Parallel(pp=4, vpp=2), 3, False, "none")
    assert micro_batches(work, interleaved) % 4 == 0


def test_the_offered_layout_leaves_memory_free() -> None:
    """14B on 16 GPUs: the fastest needs 73.2 of 79 GiB; one that takes 6% longer needs 60.2, and is offered."""
    work = read_workload("qwen2.5-14b")
    plan = make_plan(work, gpu("h100"), 16)
    assert not plan.has_headroom(plan.fits[0])
    assert plan.offered.memory.total <= 0.9 * plan.gpu.memory
    assert plan.offered.memory.total == pytest.approx(60.2 * 2**30, rel=0.001)
    assert plan.offered.time.total < 1.07 * plan.fits[0].time.total
    tight = make_plan(work, gpu("h100"), 16, headroom=0.0)
    assert tight.fits == plan.fits
    assert tight.offered.time.total <= 1.02 * tight.fits[0].time.total


def test_the_ring_is_chosen_where_it_saves_memory_that_is_needed() -> None:
    """32B in packs of 128K at TP8 CP8: gathered keys need 78.7 of 79 GiB, keys in a ring 73.2, at more messages. What
    the configuration says is kept; TransformerEngine's layers have a ring of their own and compute silu again."""
    tp8_cp8 = Layout(Parallel(tp=8, cp=8, sequence_parallel=True), 2, True, "none")

    def plan_of(*overrides: str, capacity: int = 131072) -> Layout:
        work = read_workload("qwen2.5-32b", overrides, PlanOptions(capacity=capacity))
        return with_exchange(work, tp8_cp8, gpu("h100"))

    assert [plan_of().exchange, plan_of(capacity=32768).exchange] == ["ring", "all_gather"]
    assert plan_of("training.context_exchange=all_gather").exchange == "all_gather"
    assert plan_of("training.context_exchange=ring", capacity=32768).exchange == "ring"
    work = read_workload("qwen2.5-32b", (), PlanOptions(capacity=131072))
    fused = replace(tp8_cp8, transformer_engine=True)
    gathered, ring, theirs = (
        estimate(work, layout, gpu("h100"))
        for layout in (tp8_cp8, replace(tp8_cp8, exchange="ring"), with_exchange(work, fused, gpu("h100")))
    )
    assert gathered.memory.total - ring.memory.total == pytest.approx(5.5 * 2**30, rel=0.02)
    assert ring.memory.activations - theirs.memory.activations > 2**30
    assert ring.time.communication > gathered.time.communication


def test_a_needless_recomputation_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is said where the memory without it would leave less than the headroom."""
    from nemo_openmath.cli.main import run

    line = "plan qwen2.5-32b --gpus 128 --gpu h100 training.distributed_optimizer=true training.recompute=full"
    sizes = " training.parallel.tp=8 training.parallel.sequence_parallel=true training.parallel.cp="
    for cp, needless in ((4, True), (1, False)):
        assert run(f"{line}{sizes}{cp}".split()) == 0
        assert ("recomputation is not needed: without it 5" in capsys.readouterr().out) is needless


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-14B", "qwen2.5-14b-instruct", "nvidia/OpenMath-Nemotron-14B", "FOLDER"])
def test_a_model_by_its_folder_or_its_name_on_the_hub(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(preset("qwen2.5-14b").to_hf()))
    model = read_workload(name.replace("FOLDER", str(tmp_path))).model
    assert model.num_parameters == preset("qwen2.5-14b").num_parameters


DEVICES = {
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100 NVL": 835,
    "NVIDIA H200": 989,
    "NVIDIA B200": 2250,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA L4": 121,
    "NVIDIA L40S": 362,
    "NVIDIA GB200": 2500,
    "NVIDIA GH200 480GB": None,
}


@pytest.mark.parametrize(("device", "teraflops"), DEVICES.items())
def test_a_device_is_known_by_cudas_whole_name(device: str, teraflops: float | None) -> None:
    kind = gpu_of_device(device)
    assert (None if kind is None else kind.peak / 1e12) == teraflops
    if kind is not None:
        assert gpu(device) is kind


def test_a_gpu_is_named_as_people_name_it() -> None:
    for name, expected in {
        "H100 80GB": "h100",
        "NVIDIA H100 80GB HBM3": "h100",
        "nvidia h100 pcie": "h100-pcie",
        "a100-80gb": "a100",
        "A100_40GB": "a100-40gb",
        "NVIDIA A100-PCIE-40GB": "a100-pcie-40gb",
    }.items():
        assert gpu(name).name == expected
    for name, problem in {
        "Tesla V100-SXM2-32GB": "a V100 has no bf16 matrix products",
        "NVIDIA T4": "a T4 has no bf16 matrix products",
        "h1000": "did you mean h100",
        "NVIDIA A100 60GB PCIe": "did you mean a100-pcie",
        "gaudi3": "no GPU is named 'gaudi3'; set --gpu to one of h100,",
    }.items():
        with pytest.raises(UserError, match=re.escape(problem)):
            gpu(name)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    training = {"precision": "bf16", "parallel": {"tp": 8, "cp": 2}, "distributed_optimizer": True}
    data = {"folder": "packs", "batch_samples": 512, "steps": 100}
    path.write_text(
        yaml.safe_dump({"model": "models/Qwen2.5-14B", "data": data, "output": "out", "training": training})
    )
    return path


def test_a_jobs_own_layout_is_priced(job: Path) -> None:
    work = read_workload(str(job))
    assert (work.batch_samples, work.steps, work.model) == (512, 100, preset("qwen2.5-14b"))
    plan = make_plan(work, gpu("h100"), 32, 0.5)
    assert plan.configured is not None
    assert plan.configured.layout == Layout(Parallel(tp=8, cp=2), 2, True, "none", "ring")
    twice = make_plan(work, gpu("h100"), 32, 0.25)
    assert twice.configured is not None
    assert twice.configured.time.computing == pytest.approx(2 * plan.configured.time.computing)
    assert plan.configured.gpu_hours(100) == pytest.approx(32 * 100 * plan.configured.time.total / 3600)


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("qwen2.5-32b --gpus 2 --gpu h100", "set --gpus to 16"),
        ("qwen2.5-14b --gpus 0 --gpu h100", "set --gpus to 1 or more"),
        ("qwen2.5-14b --gpus 8 --gpu b7", "set --gpu to one of h100"),
        ("qwen2.5-14b --gpus 8 --gpu h100 --mfu 40", "choose --mfu"),
        ("qwen2.5-14b --gpus 8 --gpu h100 --capacity 200000", "set --capacity to 131072 or less"),
        ("qwen2.5-14b --gpus 8 --gpu h100 --batch-samples 0", "choose it 1 or more"),
        ("qwen2.5-15b --gpus 8 --gpu h100", "qwen2.5-14b"),
        ("qwen2.5-14b --gpus 8 --gpu h100 --price 2", "give a recipe, or leave it out"),
        ("EMPTY --gpus 8 --gpu h100", "no config.json"),
        ("qwen2.5-14b --gpus 8", "give --gpus N and --gpu KIND"),
        ("JOB --gpus 24 --gpu h100", "set --gpus to a multiple of 16"),
        ("JOB --gpus 16 --gpu h100 training.precision=fp32", "set training.precision=bf16"),
        ("JOB --gpus 16 --gpu h100 training.parallel.tp=16", "num_attention_heads = 40 is not divisible"),
        ("JOB --gpus 16 --gpu h100 training.paralel.tp=4", "parallel"),
    ],
)
def test_refused_naming_the_number(job: Path, capsys: pytest.CaptureFixture[str], line: str, remedy: str) -> None:
    from nemo_openmath.cli.main import run

    if "tp=16" in line:
        line = line.replace("--gpus 16", "--gpus 32")
    assert (
        run(["plan", *line.replace("JOB", str(job)).replace("EMPTY", str(job.parent)).split()]) == ExitCode.USER_ERROR
    )
    message = capsys.readouterr().err
    assert remedy in message
    assert len(message.splitlines()) == 1


def test_what_is_said_to_fit_more_gpus_does() -> None:
    """The number of GPUs that a refusal names is enough."""
    work = read_workload("qwen2.5-32b")
    with pytest.raises(UserError) as refused:
        make_plan(work, gpu("a100"), 4)
    assert make_plan(work, gpu("a100"), int(refused.value.remedy.split()[3].rstrip(","))).fits


def test_the_command(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nemo_openmath.cli.main import run

    assert run(["plan", str(job), "--gpus", "32", "--gpu", "h100", "--rows", "5", "training.recompute=full"]) == 0
    message = capsys.readouterr().out
    for words in (
        "optimizer states",
        "host memory",
        "logits",
        "selective",
        "GPU-hours",
        "assumed",
        "100 steps",
        "the best 5",
        "Checkpoints",
    ):
        assert words in message

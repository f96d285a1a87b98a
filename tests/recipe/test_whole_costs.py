"""A whole recipe on a cluster: its parts worked out by hand, the chain that its time hangs on, what has no price."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.models.configs import preset
from nemo_openmath.recipe.costs.assumptions import CostAssumptions
from nemo_openmath.recipe.costs.decoding import DEEPSEEK_R1, AnswerShape, decoding, of_config, prompt_seconds
from nemo_openmath.recipe.costs.timetable import timetable
from nemo_openmath.recipe.file import load_recipe
from nemo_openmath.training.planning.gpus import gpu

EXAMPLES = Path(__file__).parents[2] / "examples"
CLUSTER = """\
write_gb_per_second: 4
servers:
  default: {gpus: 8, replicas: 4}
  DeepSeek-R1: {nodes: 2, gpus: 8, pipeline_parallel: 2, jobs: 16}
  Qwen2.5-Math-72B-Instruct: {gpus: 8, replicas: 2}
  teacher: {gpus: 8, replicas: 4, jobs: 4}
default: {cpus: 1, time: "04:00:00", gpu: h100}
kinds:
  solutions.grade: {cpus: 5, array: 8}
  judging.judge: {array: 8}
  rollout.generate: {cpus: 32, array: 32, running: 16, time: "08:00:00"}
  training.sft: {nodes: 16, gpus: 8, time: "24:00:00"}
"""
QWQ = preset("qwen2.5-32b")


def test_decoding_by_hand() -> None:
    """QwQ-32B on two H100s, 64 answers at once, 300 + 8192 / 2 tokens each: in a step the GPUs read 65.5 GB of weights
    and 64 x 4,396 x 262,144 bytes of keys and values at 2 x 3.35 x 0.6 TB/s; 128 sums of 20 us and 655 KB each."""
    answer = AnswerShape(300, 8192)
    choice = decoding(of_config(QWQ), gpu("h100"), CostAssumptions(), gpus=2, asked=64, answer=answer)
    assert choice is not None
    read = (2 * 32_763_876_352 + 64 * 4396 * 262_144) / (2 * 3.35e12 * 0.6)
    summed = 128 * (20e-6 + 64 * 5120 * 2 / (0.8 * 450e9))
    assert choice.tokens_per_gpu == pytest.approx(64 / (read + summed) / 2)
    assert choice.in_flight == 64
    assert choice.tokens_per_gpu == pytest.approx(855, abs=1)


def test_memory_bounds_what_is_decoded_at_once() -> None:
    """0.9 x 2 x 79 GiB without the weights hold 75 such answers; of summaries, four share a prompt."""
    model, h100, assumed = of_config(QWQ), gpu("h100"), CostAssumptions()
    full = decoding(model, h100, assumed, gpus=2, asked=1000, answer=AnswerShape(300, 8192))
    assert full is not None
    assert full.in_flight == pytest.approx((0.9 * 2 * 79 * 2**30 - 2 * 32_763_876_352) / (4396 * 262_144))
    apart, shared = (
        decoding(model, h100, assumed, gpus=2, asked=1000, answer=AnswerShape(9000, 500, together))
        for together in (1, 4)
    )
    assert apart is not None
    assert shared is not None
    assert shared.in_flight == pytest.approx(apart.in_flight * 9250 / 2500)
    assert decoding(of_config(preset("qwen2.5-72b")), h100, assumed, gpus=1, asked=8, answer=AnswerShape(1, 1)) is None
    assert decoding(DEEPSEEK_R1, h100, assumed, gpus=8, asked=8, answer=AnswerShape(300, 8192)) is None
    assert decoding(DEEPSEEK_R1, h100, assumed, gpus=16, asked=8, answer=AnswerShape(300, 8192), pipeline=2)


def priced(tmp_path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    file = tmp_path / "cluster.yaml"
    file.write_text(CLUSTER)
    assert run(["plan", str(EXAMPLES / "data-generation.yaml"), "--cluster", str(file), "--json", *words]) == 0
    costs: dict[str, Any] = json.loads(capsys.readouterr().out)
    return costs


def test_a_recipe_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    costs = priced(tmp_path, capsys, "--price", "2.5")
    stages = {stage["stage"]: stage for stage in costs["stages"]}

    # cot_qwq: 0.67M answers of 8,192 tokens at 855 a second and GPU, 190K prompts of 300 tokens; 32 jobs, 16 at a
    # time, each waits 10 minutes for its 8 GPUs' server
    qwq = stages["cot_qwq"]
    (part,) = qwq["generations"]
    work = part["answers"] * 8192 / 854.7 + part["answers"] / 3.5 * prompt_seconds(
        of_config(QWQ), gpu("h100"), CostAssumptions(), 300
    )
    assert (part["servers"], part["server_gpus"], part["where"]) == (64, 2, "job")
    assert qwq["gpu_hours"] == pytest.approx((work + 32 * 600 * 8) / 3600, rel=1e-3)
    assert qwq["node_hours"] == pytest.approx(qwq["gpu_hours"] / 8)
    assert qwq["seconds"] == pytest.approx(work / 128 + 2 * 600, rel=1e-3)
    assert qwq["again"] == 0  # half of 14.4 hours is 7.2; the limit is 8

    # 5.2M solutions at 2,800 a second, in 8 jobs of 5 cores
    graded = stages["cot_graded"]
    solved = sum(stages[name]["records"] for name in ("cot_r1", "cot_r1_open", "cot_qwq", "cot_qwq_open"))
    assert solved == pytest.approx(5.2e6, rel=0.01)
    seconds = 10 + solved / 2800
    assert graded["seconds"] == pytest.approx(seconds / 8)
    assert graded["core_hours"] == pytest.approx(5 * seconds / 3600)

    # the pool of R1: 16 servers of 16 GPUs; 16 jobs ask it for 256 answers each
    assert stages["cot_r1"]["generations"][0]["servers"] == 16
    assert stages["cot_r1"]["generations"][0]["where"] == "pool"

    trained = next(row for row in costs["trainings"] if row["stage"] == "tir2_cot_train")
    lost = trained["checkpoint"]["lost"]
    assert stages["tir2_cot_train"]["gpu_hours"] == pytest.approx(trained["own"]["gpu_hours"] / (1 - lost))
    assert trained["own"]["gpu_hours"] > 1.1 * trained["offered"]["gpu_hours"]

    total = sum(stage["gpu_hours"] + stage["elsewhere_hours"] for stage in costs["stages"])
    assert costs["price"] == pytest.approx(2.5 * total)
    assert costs["path"][0] == "threads"
    assert costs["path"][-1] == "rows"
    assert {"cot_r1", "probe", "measured"} <= set(costs["path"])
    assert costs["seconds"] >= sum(stages[name]["seconds"] for name in costs["path"])  # pools are shared


def test_numbers_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {stage["stage"]: stage for stage in priced(tmp_path, capsys)["stages"]}
    words = (
        "--problems",
        "1000",
        "--assume",
        "tokens_per_gpu.Qwen2.5-14B=2000",
        "--assume",
        "tokens.cot_qwq=4096",
        "--assume",
        "tokens_per_gpu.QwQ-32B=1000",
    )
    after = {stage["stage"]: stage for stage in priced(tmp_path, capsys, *words)["stages"]}
    assert after["cot_qwq"]["records"] == pytest.approx(3500)
    (part,) = after["cot_qwq"]["generations"]
    assert (part["answer_tokens"], part["tokens_per_gpu"], part["given"]) == (4096, 1000, True)
    assert after["tir2"]["generations"][0]["tokens_per_gpu"] == 2000
    assert after["probe"]["records"] == pytest.approx(32_000)
    assert before["benchmark"]["records"] == after["benchmark"]["records"] == 20_000


def test_planted_cases_are_priced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("stages.extracted.controls=0.02", "stages.cot_judged.controls=0.5")
    before = {stage["stage"]: stage for stage in priced(tmp_path, capsys)["stages"]}
    after = {stage["stage"]: stage for stage in priced(tmp_path, capsys, *words)["stages"]}
    for name, share in (("extracted", 0.02), ("cot_judged", 0.5)):
        (plain,), (part,) = before[name]["generations"], after[name]["generations"]
        assert part["answers"] == pytest.approx((1 + share) * plain["answers"])
        assert (plain["controls"], part["controls"]) == (0, pytest.approx(share * plain["answers"]))
        assert after[name]["records"] == before[name]["records"], "nothing planted is left"
    file = str(tmp_path / "cluster.yaml")
    assert run(["plan", str(EXAMPLES / "data-generation.yaml"), "--cluster", file, *words]) == 0
    assert "controls: answers to planted cases, 12,400 in extracted," in " ".join(capsys.readouterr().out.split())


def test_a_second_model_is_asked_its_share_whatever_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("stages.extracted.second_engine=teacher", "stages.extracted.second_share=0.25")
    stages = {stage["stage"]: stage for stage in priced(tmp_path, capsys, *words)["stages"]}
    first, second = stages["extracted"]["generations"]
    assert second["answers"] == pytest.approx(0.25 * first["answers"])


def test_a_second_model_of_unknown_size_leaves_the_price_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is served elsewhere: the stage's hours are the first model's, and it is said whose are missing."""
    recipe, cluster = tmp_path / "r.yaml", tmp_path / "cluster.yaml"
    cluster.write_text(CLUSTER)
    teacher = "teacher: {url: 'http://a:8000/v1', model: Qwen2.5-32B-Instruct, tokenizer: ./tokenizer}"
    begin = f"name: r\n{teacher}\nstages:\n  threads: {{run: problems.read_threads, from: ./forum.jsonl}}\n"
    words = "run: problems.extract, from: threads, engine: teacher"
    second = "second_engine: other, second_share: 0.5, second_server: {url: 'http://b:8000/v1', tokenizer: ./tokenizer}"
    command = ["plan", str(recipe), "--cluster", str(cluster), "--assume", "records.threads=620000"]

    def said(settings: str, *options: str) -> str:
        recipe.write_text(f"{begin}  extracted: {{{settings}}}\n")
        assert run([*command, *options]) == 0
        return capsys.readouterr().out

    alone, both = (json.loads(said(settings, "--json")) for settings in (words, f"{words}, {second}"))
    assert alone["without_second_model"] == {}
    assert both["without_second_model"] == {"extracted": "the sizes of other are not known"}
    assert alone["unpriced"] == both["unpriced"] == {}
    assert alone["gpu_hours"] == pytest.approx(both["gpu_hours"])
    assert alone["gpu_hours"] > 1
    text = " ".join(said(f"{words}, {second}").split())
    assert "without its second model: extracted: the sizes of other are not known" in text


def test_what_has_no_price_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(CLUSTER.replace("replicas: 2}", "replicas: 8}"))
    assert run(["plan", str(EXAMPLES / "data-generation.yaml"), "--cluster", str(file)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "not priced: probe: Qwen2.5-Math-72B-Instruct does not fit a server of 1 x h100" in text
    assert "GPU-hours: at least" in text
    assert "time: at least" in text


def test_the_longest_chain() -> None:
    recipe = load_recipe(EXAMPLES / "kaggle.yaml")
    seconds = dict.fromkeys(recipe.stages, 1.0) | {"cot_train": 100.0, "tir_train": 10.0, "tir_eval": 5.0}
    times = timetable(recipe, seconds, {})
    assert times.path[:5] == ("cot_rows", "cot_tokens", "cot_packs", "cot_train", "cot")
    assert times.path[-1] == "merging"
    assert times.seconds == sum(seconds[name] for name in times.path)


def test_stages_share_a_pool() -> None:
    """Two generations of 10 s that ask one pool end after 20 s; of 4 and 10 s, after 8 and 14."""
    recipe = load_recipe(EXAMPLES / "sft.yaml")
    seconds = dict.fromkeys(recipe.stages, 0.0) | {"model1_cot": 10.0, "model1_tir": 10.0}
    pool = {"model1_cot": "student", "model1_tir": "student"}
    assert timetable(recipe, seconds, pool).seconds == pytest.approx(20)
    assert timetable(recipe, seconds, {}).seconds == pytest.approx(10)
    times = timetable(recipe, seconds | {"model1_tir": 4.0}, pool)
    assert (times.ends["model1_tir"], times.ends["model1_cot"]) == pytest.approx((8, 14))


@pytest.mark.parametrize("recipe", ["qwen2.5-14b", "data-generation"])
def test_shipped_recipes_on_the_shipped_cluster(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = EXAMPLES.parent / "launcher_scripts/slurm-pyxis.yaml"
    assert run(["plan", str(EXAMPLES / f"{recipe}.yaml"), "--cluster", str(file)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for words in ("GPU-hours:", "disk:", "time:", "assumed: memory_share 0.6", "Checkpoints"):
        assert text.count(words) == 1


def test_unknown_records_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(CLUSTER)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"extends: {EXAMPLES}/kaggle.yaml\nx-plan: null\n")
    assert run(["plan", str(recipe), "--cluster", str(file)]) == ExitCode.USER_ERROR
    message = capsys.readouterr().err
    assert "how many records are in cot_rows, tir_rows, benchmark, drafter_problems, contest_problems?" in message
    assert "--assume records.cot_rows=N" in message

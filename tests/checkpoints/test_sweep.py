"""`openmath merge --sweep`: killed, it goes on; with --benchmark every candidate generates and stands in the table."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_openmath.cli.main import run
from nemo_openmath.core.records.readers import read_rows
from tests.support import models

BASE = Path(__file__).parents[2] / "examples" / "base"


@pytest.mark.slow
def test_a_sweep_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in BASE.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    a = load_file(BASE / "model.safetensors")
    noise = torch.Generator().manual_seed(0)
    b = {name: t + 0.5 * t.std() * torch.randn(t.shape, generator=noise).to(t.dtype) for name, t in a.items()}
    save_file(b, other / "model.safetensors", metadata={"format": "pt"})
    problems = [{"problem": f"What is {n} + {n}?", "expected_answer": str(2 * n)} for n in (2, 3, 4)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    output = tmp_path / "sweep"
    command = ["merge", "--sweep", "0,0.5,...,1", str(BASE), str(other), "--output", str(output), "--samples", "2"]
    command += ["--benchmark", str(tmp_path / "b.jsonl"), "--mode", "cot", "--set", "stages.*_solved.max_tokens=16"]
    assert run(command) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("maj@2", "pass@2", "tokens", "code", "Table 10"))
    for name, expected in (("ratio_0", a), ("ratio_1", b)):
        made = load_file(output / name / "model.safetensors")
        assert all(torch.equal(made[key], tensor) for key, tensor in expected.items())
    half = load_file(output / "ratio_0_5" / "model.safetensors")
    for key, tensor in half.items():  # bf16: one rounding
        torch.testing.assert_close(tensor.float(), (a[key].float() + b[key].float()) / 2, rtol=2**-8, atol=1e-6)
    texts = {}
    for name in ("ratio_0", "ratio_0_5", "ratio_1"):
        solved = [row for _, _, row in read_rows(output / f"{name}_solved")]
        assert len(solved) == 6
        texts[name] = sorted(json.dumps(row["transcript"]["pieces"]) for row in solved)
        results = json.loads((output / f"{name}_results" / "results.json").read_text())
        assert {"maj@2", "pass@2"} <= {f"{row['metric'].split('@')[0]}@{row['k']}" for row in results}
    assert texts["ratio_0"] != texts["ratio_1"], "each candidate generated for itself"
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/manifest.json")}
    assert run(command) == 0
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/manifest.json")} == before


def test_a_value_out_of_range_is_named_by_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = tmp_path / "b.jsonl"
    benchmark.write_text('{"problem": "1 + 1?", "expected_answer": "2"}\n')
    line = ["merge", "--sweep", "0,1", str(BASE), str(BASE), "--base", str(BASE), "--output", str(tmp_path / "out")]
    line += ["--method", "ties", "--density", "2", "--benchmark", str(benchmark)]
    assert run(line) == 2
    assert capsys.readouterr().err == "openmath: --density: 2.0 is out of range; choose more than 0, at most 1\n"
    assert run([*line, "--set", "stages.*.density=3"]) == 2
    assert "- override: stages.ratio_0.density: 3" in capsys.readouterr().err


DIES = """
import os, signal, sys
from nemo_openmath.checkpoints.streaming import OutputFile
from nemo_openmath.cli.main import run

left, write = int(sys.argv[1]), OutputFile.write

def dying_write(file, data):
    global left
    left -= len(data)
    if left < 0:
        write(file, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, data)

OutputFile.write = dying_write
run(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_killed_sweep_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9 in the middle of the third of five candidates: two are kept, the half one is made again."""
    a, b, c = (models.make(tmp_path / name, models.TIED, seed) for seed, name in enumerate("abc"))
    size, output = (a / "model.safetensors").stat().st_size, tmp_path / "out"
    command = ["merge", str(a), str(b), "--output", str(output), "--sweep", "0,0.25,...,1"]
    died = subprocess.run([sys.executable, "-c", DIES, str(size * 5 // 2), *command], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    finished = {path: path.stat().st_ino for path in output.glob("ratio-*")}
    assert {path.name for path in finished} == {"ratio-0", "ratio-0.25"}
    (half,) = output.glob(".ratio-0.5.*.partial")
    assert (half / "model.safetensors").stat().st_size < size
    assert run(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["kept", "kept", "wrote", "wrote", "wrote"]
    assert {path.name for path in output.iterdir()} == {f"ratio-{n / 4:g}" for n in range(5)}
    assert {path: path.stat().st_ino for path in finished} == finished
    assert run([*command[:3], "--output", str(tmp_path / "whole"), *command[5:]]) == 0
    for made in output.iterdir():
        assert models.same(models.load(made), models.load(tmp_path / "whole" / made.name))

    def refuses(command: list[str], code: int, problem: str) -> None:
        capsys.readouterr()
        assert run(command) == code
        assert problem in capsys.readouterr().err

    refuses([*command, "--method", "slerp"], 2, "ratio-0: exists already, and was made with method linear, weights")
    refuses([*command, "--format", "megatron"], 2, "ratio-0: exists already, and is a hf checkpoint")
    lineage = output / "ratio-0" / "lineage.json"
    written = lineage.read_text()
    lineage.write_text(written.replace("blake3:", ""))
    refuses(command, 2, "ratio-0: exists already, and was made by an earlier version; remove it, or choose another")
    lineage.write_text(written)
    other = "ratio-0: exists already, and was made of other models; remove it, or choose another --output"
    refuses(["merge", str(a), str(c), *command[3:]], 2, other)
    saved = shutil.copyfile(b / "model.safetensors", tmp_path / "saved")
    shutil.copyfile(c / "model.safetensors", b / "model.safetensors")  # the same name, other weights
    refuses(command, 2, other)
    shutil.copyfile(saved, b / "model.safetensors")
    config = json.loads((a / "config.json").read_text())
    for model in (a, b):
        (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    refuses(command, 2, "has another config.json")
    (output / "ratio-0" / "model.safetensors").write_bytes(b"")
    refuses(command, 1, "ratio-0/model.safetensors: truncated")

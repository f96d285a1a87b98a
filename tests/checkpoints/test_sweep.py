"""`openmath merge --sweep --benchmark`: every candidate is made, generates, is graded, and stands in the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_openmath.cli.main import run

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
        lines = (output / f"{name}_solved" / "part-00000-of-00001.jsonl").read_text().splitlines()
        assert len(lines) == 6
        texts[name] = sorted(json.dumps(json.loads(line)["transcript"]["pieces"]) for line in lines)
        results = json.loads((output / f"{name}_results" / "results.json").read_text())
        assert {"maj@2", "pass@2"} <= {f"{row['metric'].split('@')[0]}@{row['k']}" for row in results}
    assert texts["ratio_0"] != texts["ratio_1"], "each candidate generated for itself"
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/manifest.json")}
    assert run(command) == 0
    assert {path: path.stat().st_mtime_ns for path in output.glob("*/manifest.json")} == before

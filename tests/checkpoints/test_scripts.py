from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_openmath.checkpoints.script import ratios
from tests.support import models

SCRIPTS = ("hf_to_megatron", "megatron_to_hf", "hf_to_trtllm", "average", "merge", "quantize")
CONVERSION = Path(__file__).parents[2] / "conversion"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,0.1,...,1", [n / 10 for n in range(11)]),
        ("0.3", [0.3]),
        ("0,0.5,1", [0, 0.5, 1]),
        ("0, 0.3, ..., 1", [0, 0.3, 0.6, 0.9, 1]),
        ("0,0.25,…,1,2", [0, 0.25, 0.5, 0.75, 1, 2]),
        ("0,0.1,...,0.1", [0, 0.1, 0.1]),
    ],
)
def test_ratios(text: str, expected: list[float]) -> None:
    assert ratios(text) == expected


@pytest.mark.parametrize(
    "text", ["0,...,1", "...,1", "0,0.1,...", "1,0.5,...,0", "a", "", "0,nan", "0,inf", "0,0.1,...,nan"]
)
def test_ratios_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        ratios(text)


def test_scripts_run_alone(tmp_path: Path) -> None:
    """From another folder, with the package on the path and nothing else of ours."""
    source = models.make(tmp_path / "a", models.TIED)
    (tmp_path / "elsewhere").mkdir()
    script = tmp_path / "hf_to_megatron.py"
    script.write_bytes((CONVERSION / script.name).read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(CONVERSION.parent)}
    command = [sys.executable, str(script), str(source), "made", "--rope-theta", "500000", "--max-positions", "131072"]
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "wrote made\n"), done.stderr
    assert (tmp_path / "elsewhere" / "made" / "state" / ".metadata").is_file()
    assert {path.stem for path in CONVERSION.glob("*.py")} == set(SCRIPTS)


def test_scripts_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(name: str, *arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(CONVERSION / f"{name}.py"), run_name="__main__")

    monkeypatch.chdir(tmp_path)
    source = models.make(tmp_path / "a", models.WIDE)
    script("hf_to_megatron", source, tmp_path / "m", "--classic", "--tp", "2", "--pp", "2")
    script("megatron_to_hf", tmp_path / "m", tmp_path / "b")
    script("average", "--weights", "0.5", "0.5", source, tmp_path / "b", "--output", tmp_path / "c")
    script("hf_to_trtllm", tmp_path / "m", "t", "--tp", "2", "--pp", "2", "--dtype", "float16")
    assert len(list((tmp_path / "t").glob("rank*.safetensors"))) == 4
    assert "trtllm-build --checkpoint_dir t " in capsys.readouterr().out
    script("quantize", source, "q", "--format", "int8")
    assert "model.layers.0.mlp.up_proj.weight_scale" in models.load(tmp_path / "q")
    script("merge", source, tmp_path / "c", "--output", tmp_path / "d", "--sweep", "0.3,0.7")
    assert models.same(models.load(tmp_path / "d" / "ratio-0.7"), models.load(source))
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {tmp_path / 'd' / 'ratio-0.7'} (ratio 0.7)"
    with pytest.raises(SystemExit) as stopped:
        script("average", source, tmp_path / "absent", "--output", tmp_path / "e")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'absent'}: does not exist; give a Hugging Face folder")

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from . import models

CONVERSION = Path(__file__).parents[2] / "conversion"


def test_scripts_there_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(name: str, *arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(CONVERSION / f"{name}.py"), run_name="__main__")

    source = models.make(tmp_path / "a", models.WIDE)
    script("hf_to_megatron", source, tmp_path / "m", "--classic", "--tp", "2", "--pp", "2")
    script("megatron_to_hf", tmp_path / "m", tmp_path / "b")
    script("average", source, tmp_path / "b", "--output", tmp_path / "c", "--weights", "0.5", "0.5")
    script("merge", source, tmp_path / "c", "--output", tmp_path / "d", "--sweep", "0.3,0.7")
    assert models.same(models.load(tmp_path / "d" / "ratio-0.7"), models.load(source))
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {tmp_path / 'd' / 'ratio-0.7'} (ratio 0.7)"
    with pytest.raises(SystemExit) as stopped:
        script("average", source, tmp_path / "absent", "--output", tmp_path / "e")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'absent'}: does not exist; give a Hugging Face folder")

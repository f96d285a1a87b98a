"""The Python examples run, and print what they promise."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "python"
PRINTED = {
    "grader": [r"\frac{3}{2} against 3/4: not_equal (different numbers)", "majority: 12 with 3 of 5 votes"],
    "sandbox": ["completed: ['5']", 'error: ["PermissionError', "timeout: "],
    "packing": ["fill: 99.9"],
    "engine": ["length, 24 tokens: "],
    "metrics": ["pass@1, pass@8: 0.625", "difference: +"],
}


@pytest.mark.parametrize("name", PRINTED)
def test_example(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(text in printed for text in PRINTED[name]), printed


def test_every_example_is_run() -> None:
    assert {file.stem for file in FOLDER.glob("*.py")} == set(PRINTED)

"""Grading, generating and runs on a disk that is really full: one line, nothing torn, and the same command goes on."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode
from tests.support.disk import small_disk

BASE = Path(__file__).parents[2] / "examples" / "base"
SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder, SIZE) as mounted:
        yield mounted


@pytest.mark.parametrize("verb", ["grade", "generate", "recipe run"])
def test_a_full_disk_is_one_line_and_no_loss(
    verb: str, disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "rows.jsonl").open("w") as file:
        for n in range(60):
            row = {"problem": f"{n} + {n}? {'x' * 900}", "expected_answer": str(2 * n), "predicted_answer": str(2 * n)}
            file.write(json.dumps(row) + "\n")
    (tmp_path / "g.yaml").write_text(
        f"problems: ./rows.jsonl\nengine: {{kind: embedded, model: {BASE}, slots: 2}}\n"
        "generate: {max_tokens: 2, limit: 4}\n"
    )
    (tmp_path / "r.yaml").write_text(
        "name: r\nstages:\n  a: {run: problems.read_problems, from: ./rows.jsonl}\n"
        "  b: {run: problems.read_problems, from: ./rows.jsonl}\n"
    )
    out = disk / "out"
    words = [str(tmp_path / "r.yaml")] if verb == "recipe run" else [str(tmp_path / "g.yaml")]
    words = [*verb.split(), *([str(tmp_path / "rows.jsonl")] if verb == "grade" else words), "--output", str(out)]
    for room in (0, 24 << 10, 90 << 10):
        (disk / "filler").write_bytes(bytes(SIZE - room))
        code = run(words)
        said = capfd.readouterr().err
        assert code is ExitCode.MACHINE, (room, said)
        last = said.splitlines()[-1]
        assert last.startswith(f"openmath: {disk}/"), last
        assert "no space left (No space left on device); " in last
        assert last.endswith("; free some space and run the same command again")
        assert sum(line.startswith("openmath:") for line in said.splitlines()) == 1
        assert "Traceback" not in said
        assert not list(disk.rglob("*.tmp")), "nothing half-written is left"
        (disk / "filler").unlink()
    assert run(words) is ExitCode.OK

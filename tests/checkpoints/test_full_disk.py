"""A disk that is really full: a small tmpfs, mounted where that is permitted."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_openmath.checkpoints.convert import hf_to_megatron
from nemo_openmath.cli.main import run
from tests.support import models
from tests.support.disk import small_disk

SIZE = 4 << 20
VERBS = {
    "to_megatron": "convert hf-to-megatron {hf} {out}",
    "to_classic": "convert hf-to-megatron {hf} {out} --classic --tp 2 --pp 2",
    "to_hf": "convert megatron-to-hf {megatron} {out}",
    "to_trtllm": "convert hf-to-trtllm {hf} {out} --tp 2 --pp 2",
    "average": "average {hf} {hf} --output {out}",
    "average_megatron": "average {megatron} {megatron} --output {out}",
    "merge": "merge --method ties --base {hf} {hf} {hf} --output {out}",
    "sweep": "merge --sweep 0,1 {hf} {hf} --output {out}",
    "quantize": "quantize {hf} {out} --format int8",
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk(tmp_path_factory.mktemp("disk"), SIZE) as mounted:
        yield mounted


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    hf = models.make(folder / "hf")
    return {"hf": hf, "megatron": hf_to_megatron(hf, folder / "megatron")}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_that_the_disk_is_full(
    disk: Path, sources: dict[str, Path], verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With room for nothing, for a part, and for all but the end: one line, exit code 1, and nothing is left."""
    out, filler = disk / "out", disk / "filler"
    command = VERBS[verb].format(**sources, out=out).split()
    assert run(command) == 0
    used = sum(-(-path.stat().st_size // 4096) * 4096 for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    for room in (0, used // 3, used - 4096):
        filler.write_bytes(bytes(SIZE - room))
        capsys.readouterr()
        assert run(command) == 77, room
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "no space left (" in error
        assert error.endswith("; nothing was left behind; free some space and run the same command again\n")
        filler.unlink()
        finished = {path.name for path in (out.iterdir() if out.exists() else ())}
        assert finished <= ({"ratio-0"} if verb == "sweep" else set())
        assert [path.name for path in disk.iterdir() if path != out] == []
        shutil.rmtree(out, ignore_errors=True)
    assert run(command) == 0
    shutil.rmtree(out)


def test_a_mount_point_is_no_name_for_a_result(
    disk: Path, sources: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """It cannot be renamed: said before the work, not after it. Read-only: said, too."""
    command = ["convert", "hf-to-megatron", str(sources["hf"])]
    assert run([*command, str(disk)]) == 2
    assert "is a mount point, which cannot be renamed; name a folder inside it" in capsys.readouterr().err
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        assert run([*command, str(disk / "out")]) == 2
        assert "out: cannot be written (Read-only file system); choose a folder" in capsys.readouterr().err
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)

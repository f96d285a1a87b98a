"""Jobs of an array on several machines, each of which sees what its cache of the folder shows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_openmath.cli.main import run
from nemo_openmath.core import shared_files
from nemo_openmath.core.errors import ExitCode, SystemFailure
from nemo_openmath.core.records import Drop, RecordWriter
from nemo_openmath.recipe import stage_folder
from tests.support.services import stage_context


def _job(folder: Path, shard: int) -> bool:
    """Make the records of one job of two, and say whether it was the last."""
    context = stage_context({}, folder, shard=shard, shards=2, partitions=2)
    with RecordWriter(folder, partition=shard, partitions=2) as writer:
        if not writer.done(f"unit-{shard}"):
            writer.commit(f"unit-{shard}", drops=[Drop("nothing in it")])
    return stage_folder.is_last_shard(folder, context)


def test_two_jobs_that_end_at_once_leave_a_whole_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second job's listings are a minute old: it finds the first one's mark by its name, and waits for its files;
    where they never come, it says so."""
    monkeypatch.setattr(shared_files, "LOOK_S", 0.0)
    assert not _job(tmp_path, 0)
    glob, listdir, looks = Path.glob, os.listdir, []

    def old_glob(path: Path, pattern: str) -> Iterator[Path]:
        return (name for name in glob(path, pattern) if "00000-of" not in name.name)

    def old_listing(path: Path) -> list[str]:
        looks.append(path)
        return [name for name in listdir(path) if len(looks) > 2 or "00000-of" not in name]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", old_glob)
        patch.setattr(os, "listdir", old_listing)
        assert _job(tmp_path, 1)
    assert len(looks) == 3
    monkeypatch.setattr(shared_files, "PATIENCE_S", 0.0)
    (tmp_path / "journal-00000-of-00002.jsonl").unlink()
    with pytest.raises(SystemFailure, match=r"journal-00000-of-00002.jsonl: another job has written it, and this mach"):
        _job(tmp_path, 1)


def test_a_job_waits_until_its_machine_sees_what_it_was_queued_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"problem": "1 + 1?", "expected_answer": "2"}\n')
    stages = "  a: {run: problems.read_problems, from: ./rows.jsonl}\n  b: {run: problems.near_duplicates, from: a}\n"
    (tmp_path / "r.yaml").write_text(f"name: r\nstages:\n{stages}")
    command = ["recipe", "run", str(tmp_path / "r.yaml"), "--output", str(tmp_path / "out"), "--only"]
    assert run([*command, "a"]) is ExitCode.OK
    manifest, unseen = tmp_path / "out/a/manifest.json", tmp_path / "unseen"
    manifest.rename(unseen)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setattr(shared_files, "LOOK_S", 0.0)
    monkeypatch.setattr(shared_files, "touch", lambda folder: unseen.exists() and unseen.rename(manifest))
    assert run([*command, "b"]) is ExitCode.OK
    manifest.rename(unseen)
    unseen.unlink()
    monkeypatch.setattr(shared_files, "PATIENCE_S", 0.0)
    assert run([*command, "b"]) is ExitCode.USER_ERROR

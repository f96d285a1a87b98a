"""`openmath jobs` on a real Slurm (by hand: `pytest -m manual tests/launch`; apt install slurm-wlm munge)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.launch.slurm_rig import missing_programs, slurm

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.manual,
    pytest.mark.skipif(bool(missing_programs()), reason="Slurm is not installed here"),
]

PROGRAM = """\
#!/bin/bash
case "$*" in
  "jobs status"*) exec {python} -m nemo_openmath.cli.main "$@" ;;
  *"--only threads"*)
    [ ! -e {folder}/wrong ] || { echo "openmath: r.yaml:3: wrong; mend it" >&2; exit 2; }
    [ -e {folder}/go ] || exec sleep 300 ;;
esac
"""
CLUSTER = """\
environment: {PATH: "{folder}/bin:/usr/sbin:/usr/bin:/sbin:/bin", ODD: "a $b 'c' \\"d\\""}
warn_seconds: 50
default: {time: "00:20:00"}
notify: {command: 'echo "$OPENMATH_STATE $OPENMATH_JOB $OPENMATH_REASON" >>{folder}/told'}
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def test_a_run_is_watched_cancelled_and_gone_on_with(rig: dict[str, str], tmp_path: Path) -> None:
    """Also by somebody who tells Slurm nothing, with a recipe that is wrong by now; who is told of failure and end."""
    recipe, output = tmp_path / "smoke.yaml", tmp_path / "run"
    recipe.write_text(f"extends: {ROOT}/examples/smoke.yaml\n")
    (tmp_path / "cluster.yaml").write_text(CLUSTER.replace("{folder}", str(tmp_path)))
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/openmath"
    program.write_text(PROGRAM.replace("{folder}", str(tmp_path)).replace("{python}", sys.executable))
    program.chmod(0o755)

    def openmath(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "nemo_openmath.cli.main", *words]
        done = subprocess.run(command, env=rig, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout + done.stderr

    def status() -> dict[str, dict[str, Any]]:
        return {job["name"]: job for job in json.loads(openmath("jobs", "status", str(output), "--json"))["jobs"]}

    openmath("launch", str(recipe), "--cluster", str(tmp_path / "cluster.yaml"), "--output", str(output),
             "--until", "threads")  # fmt: skip
    recipe.write_text("nothing: good\n")
    (tmp_path / "cluster.yaml").unlink()
    deadline = time.monotonic() + 60
    while (seen := status())["threads"]["state"] != "running":
        assert time.monotonic() < deadline, seen
    assert (seen["benchmark"]["state"], seen["report"]["state"]) == ("done", "queued")
    assert (seen["threads"]["tasks"][0]["attempt"], seen["report"]["reason"]) == (1, "after threads")
    assert "queued already: threads, report" in openmath("jobs", "resume", str(output), code=2)

    assert "all of them are gone" in openmath("jobs", "cancel", str(output))
    assert status()["threads"]["reason"] == "by scancel while it ran"
    assert "cancelled: " in openmath("jobs", "watch", str(output), code=130)

    (tmp_path / "wrong").touch()
    assert "threads after benchmark" in openmath("jobs", "resume", str(output))
    told = openmath("jobs", "watch", str(output), "--every", "1", code=1)
    assert "threads failed: exit code 2, wrong input: openmath: r.yaml:3: wrong; mend it" in told
    log = openmath("jobs", "logs", str(output), "report", "-n", "1")
    assert f"failed: {output}: 1 of 2 jobs done; threads failed: exit code 2" in log

    (tmp_path / "wrong").unlink()
    (tmp_path / "go").touch()
    openmath("jobs", "resume", str(output))
    assert openmath("jobs", "watch", str(output), "--every", "1").endswith(f"done: {output}: 2 of 2 jobs done\n")
    reason = "exit code 2, wrong input: openmath: r.yaml:3: wrong; mend it"
    assert (tmp_path / "told").read_text().splitlines() == [
        f"failed threads {reason}",
        f"failed report {output}: 1 of 2 jobs done; threads failed: {reason}",
        f"done report {output}: 2 of 2 jobs done",
    ]

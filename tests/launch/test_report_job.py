"""The last job of a run, and who is told of a failure and of the end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.launch.test_snapshot import launch, recipe_files

COMMAND = """curl -d "$OPENMATH_STATE: 'it'" https://example.org/x"""


def test_a_last_job_waits_for_all_stages_and_tells(tmp_path: Path) -> None:
    recipe = recipe_files(tmp_path)
    notify = f"notify: {{command: {json.dumps(COMMAND)}, mail: true}}\n"
    (tmp_path / "cluster.yaml").write_text(notify)
    sbatch = launch(tmp_path, recipe).parent
    jobs = json.loads((sbatch / "jobs.json").read_text())["jobs"]
    assert [job["name"] for job in jobs] == ["theirs", "mine", "sorted", "report"]
    assert (jobs[-1]["after"], jobs[-1]["work"]) == (["theirs", "mine", "sorted"], "report")
    assert "\nsubmit_last report theirs mine sorted\n" in (sbatch / "submit.sh").read_text()
    scripts = {name: (sbatch / f"{name}.sh").read_text() for name in ("mine", "report")}
    assert "#SBATCH --mail-type=FAIL\n" in scripts["mine"]
    assert "#SBATCH --mail-type=END,FAIL\n" in scripts["report"]
    for name in scripts:
        subprocess.run(["bash", "-n", str(sbatch / f"{name}.sh")], check=True)

    line = next(line for line in scripts["mine"].splitlines() if line.startswith("notify_command="))
    program = f"curl() {{ printf '<%s>' \"$@\"; }}; export -f curl; {line}\n"
    program += 'output=/r name=mine job=7 log=/l; source "$0"; notify failed "bad; $(row)"'
    done = subprocess.run(
        ["bash", "-uc", program, str(sbatch / "functions.sh")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "<-d><failed: 'it'><https://example.org/x>"

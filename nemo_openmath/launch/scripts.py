"""Jobs -> sbatch scripts and the script that submits them, rendered from Jinja templates."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from nemo_openmath.core.errors import UserError, of_the_system
from nemo_openmath.launch.cluster import TEMPLATES, Cluster
from nemo_openmath.launch.container import step
from nemo_openmath.launch.jobs import SlurmJob, addresses, script_path
from nemo_openmath.launch.serving import ServedModel
from nemo_openmath.launch.values import pattern, sbatch_option

SUBMIT = "submit.sh"
COPIED = ("functions.sh", "servers.sh", "serve.sh", "network.sh", "faults.txt")
"""What every script reads, copied from the templates' folder."""


def write_scripts(
    jobs: Sequence[SlurmJob],
    cluster: Cluster,
    recipe: Path,
    output: Path,
    overrides: Sequence[str] = (),
    *,
    code: Path | None = None,
    values: Mapping[str, object] | None = None,
) -> Path:
    """Write ``output/sbatch/*.sh``, one for each job, and ``submit.sh``, whose path is returned.

    ``code``: the folder that holds the package as the jobs are to run it; None for the one that is installed.
    ``values``: what else the templates of these jobs name.

    Scripts of earlier launches are removed; their logs stay. Raises UserError for a path that a script cannot name, and
    for a template that is wrong.
    """
    recipe, output = recipe.resolve(), output.resolve()
    for path in (recipe, output):
        if not str(path).isprintable():
            problem = "the path has a line break or another control character"
            raise UserError(problem, file=repr(str(path)), remedy="rename it")
    folder = output / "sbatch"
    templates = _templates(cluster.templates or TEMPLATES)
    common = {"cluster": cluster, "recipe": recipe, "output": output, "run": output.name, "overrides": list(overrides)}
    common |= {"code": code, **(values or {})}
    texts = {
        script_path(output, job.name): _render(templates, f"{job.work}.sh.j2", {**common, "job": job}) for job in jobs
    }
    texts |= {folder / f"servers/{job.name}.json": _addresses(job, output) for job in jobs if job.asks_servers}
    submit_script = folder / SUBMIT
    texts[submit_script] = _render(templates, "submit.sh.j2", {**common, "jobs": jobs})
    texts |= {folder / name: _text(templates, name) for name in COPIED}
    texts[folder / "jobs.json"] = _jobs_file(jobs, recipe, overrides)
    try:
        for name in ("logs", "journal", "servers"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.sh"):
            old.unlink()
        for path, text in texts.items():
            path.write_text(text)
            path.chmod(0o755 if path.suffix == ".sh" else 0o644)
    except OSError as error:
        raise of_the_system(error, folder) or error from error
    return submit_script


def submit(script: Path) -> str:
    """Run ``submit.sh`` and return what it printed: a line for each job. Raises UserError where sbatch is missing or
    refuses."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not on this machine", file=script, remedy="run this script where Slurm is, or use recipe run"
        )
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        message = " ".join((done.stderr or done.stdout).split())
        raise UserError(f"not submitted: {message}", file=script)
    return done.stdout


def server_options(server: ServedModel, job: SlurmJob, cluster: Cluster) -> str:
    """Return srun's options for the step that serves a model."""
    settings = server.settings
    words = [f"--nodes={settings.nodes}", f"--ntasks={settings.nodes * settings.tasks}"]
    words += [f"--ntasks-per-node={settings.tasks}", f"--cpus-per-task={max(1, settings.cpus // settings.tasks)}"]
    words += ["--overlap", "--kill-on-bad-exit=1"] if settings.is_group else ["--overlap", "--kill-on-bad-exit=0"]
    words += ["--wait=0"]  # a replica that has ended for good ends no other
    words += ["--mpi=pmix"] if settings.uses_mpi else []
    if settings.gpus and cluster.gpus_option == "--gpus-per-task":
        words += [f"--gpus-per-task={settings.gpus // settings.tasks}"]
    return " ".join(words)


def _templates(folder: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, TEMPLATES]),  # a user's own come first
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell, not HTML: values go through the filter `quote`
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    environment.filters["step"] = step
    environment.filters["server_options"] = server_options
    environment.filters["pattern"] = pattern
    environment.filters["sbatch_option"] = sbatch_option
    return environment


def _render(templates: jinja2.Environment, name: str, values: dict[str, object]) -> str:
    folder = _folder(templates)
    try:
        return templates.get_template(name).render(**values)
    except jinja2.TemplateNotFound as error:
        raise UserError(f"no template {error.name}", file=folder, remedy=f"copy it from {TEMPLATES}") from error
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"template: {error.message}", file=Path(folder) / (error.name or name), row=error.lineno
        ) from error
    except jinja2.UndefinedError as error:
        raise UserError(f"template: {error.message}", file=Path(folder) / name) from error


def _text(templates: jinja2.Environment, name: str) -> str:
    assert templates.loader is not None
    return templates.loader.get_source(templates, name)[0]


def _addresses(job: SlurmJob, output: Path) -> str:
    """What ``recipe run --servers`` reads: where the models are served that the stages of a job ask."""
    return json.dumps(addresses(job, output), indent=1) + "\n"


def _jobs_file(jobs: Sequence[SlurmJob], recipe: Path, overrides: Sequence[str]) -> str:
    """What the jobs are, for programs that look at a run: the graph, and what each was given."""
    shown = (
        "name", "kind", "work", "stages", "after", "array", "running", "nodes", "gpus", "cpus", "memory", "time",
        "partition",
    )  # fmt: skip
    rows = [
        {
            **{key: getattr(job, key) for key in shown},
            "servers": [pool.job for pool in job.asks],
            "script": f"{job.name}.sh",
        }
        for job in jobs
    ]
    return json.dumps({"format": 1, "recipe": str(recipe), "overrides": list(overrides), "jobs": rows}, indent=1) + "\n"


def _folder(templates: jinja2.Environment) -> str:
    assert isinstance(templates.loader, jinja2.FileSystemLoader)
    return templates.loader.searchpath[0]

"""Reads command lines and YAML of the pages by the code that they are written for, without doing what they say."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path

import yaml

from nemo_openmath.cli.main import build_parser
from nemo_openmath.cli.registry import register_all
from nemo_openmath.competition.lab.search import read_choices
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.launch import load_cluster
from nemo_openmath.recipe.decide_file import load_decide_job
from nemo_openmath.recipe.file import is_recipe, load_recipe
from nemo_openmath.recipe.generate import load_job
from nemo_openmath.training.worker import read_job
from tests.docs.blocks import TOP, Block

register_all()

IN_REPOSITORY = {path.name for path in TOP.iterdir()} - {".git", ".venv", "runs", "build"}
OF_THE_READER = ("examples/models/", "examples/data/")  # where readers put their own files
RUNNABLE = {"openmath", "python", "ls", "cat", "head", "tail", "wc", "grep", "sort", "cp", "mkdir"}
# Programs of the system and of others that a page may name without their being run.
KNOWN = RUNNABLE | {"make", "cd", "git", "pip", "hf", "bash", "source", "export", "mv", "rm", "kill"}
KNOWN |= {
    "docker",
    "buildah",
    "podman",
    "enroot",
    "apptainer",
    "vllm",
    "tensorboard",
    "nvidia-smi",
    "curl",
    "ssh",
    "pre-commit",
}
KNOWN |= {"sbatch", "squeue", "scancel", "scontrol", "sacct", "srun", "salloc"}


def name(word: str) -> str:
    """The program that a word names: ``.venv/bin/openmath`` is openmath."""
    program = word.removeprefix(".venv/bin/")
    return "python" if program in ("python3", "python3.11") else program


def check_command(words: tuple[str, ...], folder: Path) -> None:
    """AssertionError where a command names what is not there. ``folder``: looks like a clone."""
    program, arguments = name(words[0]), list(words[1:])
    assert program in KNOWN, f"{program}: no program that pages name; see KNOWN in tests/docs/readers.py"
    if program == "openmath":
        check_openmath(arguments, folder)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE)
        unknown = [word for word in arguments if "=" not in word and word not in targets]
        assert not unknown, f"make {unknown}: no such target"
    elif program == "python" and "-m" in arguments:
        module = arguments[arguments.index("-m") + 1]
        assert importlib.util.find_spec(module), f"python -m {module}: no such module"
    for word in arguments:
        check_path(word)


def check_path(word: str) -> None:
    """A path into the repository must lead somewhere; other paths are the user's."""
    path = word.rpartition("=")[2]
    if path.split("/")[0] in IN_REPOSITORY and "/" in path and not path.startswith(OF_THE_READER):
        assert (TOP / path.partition("::")[0]).exists(), f"{path}: no such file"


def check_openmath(arguments: list[str], folder: Path) -> None:
    """Parse a command line, and read the files of the repository that it names with its overrides."""
    behind = arguments.index("--") if "--" in arguments else len(arguments)
    try:
        options, rest = build_parser().parse_known_args(arguments[:behind])
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"openmath {' '.join(arguments)}: the parser refuses it") from None
        return
    overrides = getattr(options, "overrides", []) + rest
    assert all(re.match(r"[\w.-]+=", word) for word in overrides), f"unknown arguments: {overrides}"
    if not hasattr(options, "parser"):
        return
    verb = options.parser.prog.removeprefix("openmath ")
    if verb == "recipe stages" and options.kind:
        assert options.kind in stage_kinds(), f"{options.kind}: no such kind of stage"
    if verb in ("recipe run", "recipe show", "launch") and (folder / options.recipe).is_file():
        _check_recipe(options, overrides, folder)
    if verb == "plan" and is_recipe(folder / options.config):
        options.recipe = options.config
        _check_recipe(options, overrides, folder)
    elif verb in ("sft", "plan") and (job := folder / (options.job if verb == "sft" else options.config)).is_file():
        read_job(job, overrides)
    if verb == "generate" and (folder / options.job).is_file():
        load_job(folder / options.job, overrides)


def _check_recipe(options: argparse.Namespace, overrides: list[str], folder: Path) -> None:
    recipe = load_recipe(folder / options.recipe, overrides)
    for stage in ("until", "start", "only"):
        if given := getattr(options, stage, None):
            recipe.entry(given)
    if (cluster := getattr(options, "cluster", None)) and (folder / cluster).is_file():
        load_cluster(folder / cluster, list(recipe.stages))


def check_yaml(block: Block, folder: Path) -> None:
    """Build the block by the reader of its kind; what is only a part of a file is laid over the file that it names."""
    data = yaml.safe_load(block.text)
    assert isinstance(data, dict), f"{block.where}: expected settings by name"
    over, job = block.hint("over"), block.hint("job")
    written = folder / "page.yaml"
    if over is not None:
        base = f"extends: ./{over}\n"
        kind = "recipe"
    elif block.hint("cluster") is not None:
        base, kind = (
            "" if data.keys() & {"templates", "extends"} else "extends: launcher_scripts/slurm-pyxis.yaml\n",
            "cluster",
        )
    elif job in ("decide", "contest"):
        base, kind = "", job
    elif job is not None:
        assert job in ("sft", "generate"), f"{block.where}: job sft, generate, decide or contest"
        example = "examples/sft-job.yaml" if job == "sft" else "examples/generate.yaml"
        whole = "output" in data if job == "sft" else "engine" in data and "problems" in data
        base, kind = "" if whole or "extends" in data else f"extends: {example}\n", job
    else:
        assert "stages" in data, f"{block.where}: which reader? write one of the comments of docs/maintaining/pages.md"
        base, kind = "", "recipe"
    name_line = "name: page\n" if kind == "recipe" and "name" not in data else ""
    written.write_text(base + name_line + block.text)
    try:
        if kind == "recipe":
            load_recipe(written)
        elif kind == "cluster":
            smoke = load_recipe(folder / "examples/smoke.yaml")
            load_cluster(written, list(smoke.stages))
        elif kind == "sft":
            read_job(written, [])
        elif kind == "decide":
            load_decide_job(written)
        elif kind == "contest":
            read_choices(written)
        else:
            load_job(written)
    finally:
        written.unlink()

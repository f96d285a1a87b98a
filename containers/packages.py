"""Which packages an image gets: `python packages.py plan`, then pip, then `python packages.py check` (see Dockerfile).

The base image brings torch and what is compiled against it, often as pre-releases that pip would replace. These stay as
they are: pip is shown their exact versions as constraints, and is never asked for torch. Everything else gets the
versions of constraints.txt, with which the tests were last run, where the image does not have the package yet.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement  # pip is in every image, packaging is not
from pip._vendor.packaging.utils import canonicalize_name

KEPT = ("torch", "torchvision", "torchaudio", "triton", "pytorch-triton", "transformer-engine", "flash-attn", "apex")
"""Distributions that belong to the base image: compiled against each other, and not to be replaced."""
SERVERS = ("vllm", "sglang", "trtllm")
"""Extras that bring another torch. They have images of their own."""
HERE = Path(__file__).resolve().parent


def main() -> None:
    """Write what pip shall install, or look at what it did. Ends with one line where the image cannot be built."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("plan", "check"))
    parser.add_argument("--extras", default="", help="optional groups of pyproject.toml, between commas or blanks")
    parser.add_argument("--base", default="", help="the name of the base image")
    parser.add_argument("--commit", default="", help="the commit that is built")
    options = parser.parse_args()
    if options.work == "plan":
        plan(options.extras.replace(",", " ").split())
    else:
        check(options.base, options.commit)


def plan(extras: list[str]) -> None:
    """Write requirements.txt, constraints-image.txt and base.json beside this file."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"]
    for extra in extras:
        if extra in SERVERS:
            sys.exit(f"extra {extra}: it brings a torch of its own; serve models from its own image")
        if extra not in groups:
            sys.exit(f"extra {extra}: unknown; known: {', '.join(sorted(set(groups) - set(SERVERS)))}")
    wanted = [Requirement(line) for group in (project["dependencies"], *(groups[e] for e in extras)) for line in group]
    have = installed()
    torch = next(r for r in wanted if r.name == "torch")
    if "torch" not in have:
        sys.exit("this image has no torch: choose a base that has it, such as nvcr.io/nvidia/pytorch")
    if not torch.specifier.contains(have["torch"], prereleases=True):
        sys.exit(f"this image has torch {have['torch']}, the project needs {torch.specifier}: choose another BASE")
    asked = [r for r in wanted if canonicalize_name(r.name) not in KEPT]
    (HERE / "requirements.txt").write_text("".join(f"{requirement}\n" for requirement in asked))
    unmet = {canonicalize_name(r.name) for r in asked if not _met(r, have)}
    pins = [Requirement(line) for line in (HERE / "constraints.txt").read_text().splitlines() if line[:1].isalnum()]
    lines = [f"{name}=={have[name]}" for name in KEPT if name in have]
    lines += [str(p) for p in pins if (n := canonicalize_name(p.name)) not in KEPT and (n not in have or n in unmet)]
    (HERE / "constraints-image.txt").write_text("\n".join(lines) + "\n")
    (HERE / "base.json").write_text(json.dumps(have))


def check(base: str, commit: str) -> None:
    """Compare with what the base had, and write image.json. Ends with one line where a package was replaced that must
    not be."""
    before, after = json.loads((HERE / "base.json").read_text()), installed()
    for name in KEPT:
        if name in before and after.get(name) != before[name]:
            sys.exit(f"pip replaced {name} {before[name]} of the base by {after.get(name)}: this image would not work")
    changed = {name: [old, after.get(name)] for name, old in before.items() if after.get(name) != old}
    for name, (old, new) in sorted(changed.items()):
        print(f"changed: {name} {old} -> {new}")
    if "transformer-engine" not in after:
        print("this image has no transformer-engine: trainings use our own layers")
    facts = {
        "version": after["nemo-openmath"],
        "commit": commit,
        "base": base,
        "python": platform.python_version(),
        "torch": after["torch"],
        "changed": changed,
        "packages": after,
    }
    (HERE / "image.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def installed() -> dict[str, str]:
    """Return the version of every distribution of this image."""
    return {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions() if d.metadata["Name"]}


def _met(requirement: Requirement, have: dict[str, str]) -> bool:
    version = have.get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(version, prereleases=True)


if __name__ == "__main__":
    main()

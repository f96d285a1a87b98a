"""Python, the packages, torch, the compiler of the embedded engine, and the sandbox."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from nemo_openmath.core.errors import OpenMathError
from nemo_openmath.launch.doctor.finding import Finding, FindingGroup
from nemo_openmath.launch.doctor.probing import Probe
from nemo_openmath.launch.doctor.system import System
from nemo_openmath.sandbox import LocalSandbox

GROUP = FindingGroup("software")
OURS = "nemo-openmath"
NEVER_OUTSIDE = ("megatron-core",)  # models/cpu_compat.py refuses to start with others
MODULES = {"megatron-core": "megatron", "PyYAML": "yaml"}
"""Package -> its module, where the names differ."""
EXTRAS = {
    "TransformerEngine": ("transformer-engine", "gpu"),
    "vLLM": ("vllm", "vllm"),
    "SGLang": ("sglang", "sglang"),
    "TensorRT-LLM": ("tensorrt-llm", "trtllm"),
    "datasets": ("datasets", "datasets"),
    "ModelOpt": ("nvidia-modelopt", "quantize"),
}
"""What a finding is called -> the package, and the extra that brings it."""


def installed(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def look_at_python(system: System) -> Iterator[Finding]:
    """Yield whether this Python is one that the package takes."""
    here = platform.python_version()
    text = f"{here} ({platform.python_implementation()}, {platform.machine()})"
    try:
        wanted = metadata(OURS)["Requires-Python"] or ""
    except PackageNotFoundError:
        wanted = ""
    if not SpecifierSet(wanted).contains(here, prereleases=True):
        yield GROUP.red(
            "Python", f"{text} is not {wanted}", "make the environment with Python 3.11 or 3.12", python=here
        )
        return
    yield GROUP.green("Python", text, python=here)


def look_at_packages(system: System) -> Iterator[Finding]:
    """Yield whether the packages are there that pyproject.toml asks for, and in the versions that it allows."""
    try:
        wanted = [Requirement(line) for line in requires(OURS) or ()]
    except PackageNotFoundError:
        wanted = []
    if not wanted:
        yield GROUP.yellow(
            "packages",
            f"{OURS} is not installed: what it needs is not known",
            "pip install it, or a copy of it with -e",
        )
        return
    yield packages(wanted, installed)
    needed = [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    yield from hidden(needed, system.environment.get("PYTHONPATH", ""))
    for name, (package, extra) in EXTRAS.items():
        here = installed(package)
        if here is None and package == "transformer-engine" and system.num_gpu_devices:
            text = "is not installed: trainings on GPUs take our own layers, which are slower"
            yield GROUP.yellow(name, text, f"use the container, or pip install '{OURS}[{extra}]'")
            continue
        if here is None:
            yield GROUP.not_here(name, remedy=f"pip install '{OURS}[{extra}]'")
            continue
        ranges = [r.specifier for r in wanted if r.name == package]
        if any(here not in specifier for specifier in ranges):
            yield GROUP.yellow(name, f"{here} is not {ranges[0]}", f"pip install '{OURS}[{extra}]'", version=here)
        else:
            yield GROUP.green(name, here, version=here)


def packages(wanted: list[Requirement], of: Callable[[str], str | None]) -> Finding:
    """Return the finding about the packages that are always needed. ``of``: name -> version, None where it is not
    installed."""
    needed = [r for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    versions = {r.name: of(r.name) for r in needed}
    missing = [f"{r.name}{r.specifier}" for r in needed if versions[r.name] is None]
    outside = [
        (r.name, f"{r.name} {here} is not {r.specifier}")
        for r in needed
        if (here := versions[r.name]) is not None and not r.specifier.contains(here, prereleases=True)
    ]
    texts = [*(f"{name} is missing" for name in missing), *(text for _, text in outside)]
    remedy = "install with --constraint constraints.txt, in an environment of its own"
    if missing or any(name in NEVER_OUTSIDE for name, _ in outside):
        return GROUP.red("packages", "; ".join(texts), remedy, **versions)
    if outside:
        return GROUP.yellow("packages", "; ".join(texts), f"{remedy}; a container's own torch may differ", **versions)
    return GROUP.green("packages", f"{len(needed)} needed ones are there, in versions that are allowed", **versions)


def hidden(names: Sequence[str], python_path: str) -> Iterator[Finding]:
    """Yield which of these packages are installed, and yet read from a folder of PYTHONPATH."""
    folders = [os.path.realpath(folder) for folder in python_path.split(os.pathsep) if folder]
    for name in names:
        spec = importlib.util.find_spec(MODULES.get(name, name.replace("-", "_")))
        if spec is None or spec.origin is None or installed(name) is None:
            continue
        origin, place = os.path.realpath(spec.origin), os.path.realpath(str(distribution(name).locate_file("")))
        if not Path(origin).is_relative_to(place) and any(Path(origin).is_relative_to(folder) for folder in folders):
            text = f"{name} is read from {spec.origin}, which hides the one in {place}"
            yield GROUP.red("imports", text, "take its folder out of PYTHONPATH", package=name, origin=spec.origin)


def torch_build() -> tuple[str, str | None] | None:
    """Return torch's version and the CUDA that it was built for (None: a CPU build), without importing it; None where
    it is not installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        text = ""
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return installed("torch") or "?", match[1] if match else None


def look_at_torch(system: System) -> Iterator[Finding]:
    """Yield whether torch's build fits the machine."""
    yield torch(torch_build(), system.num_gpu_devices)


def torch(build: tuple[str, str | None] | None, num_gpus: int) -> Finding:
    """Return the finding about a build of torch (:func:`torch_build`) on a machine with so many GPUs."""
    if build is None:
        return GROUP.red("torch", "is not installed", "pip install torch first, then this package")
    number, cuda = build
    if cuda is None and num_gpus:
        text = f"{number} is built for CPUs, and {num_gpus} GPUs are here"
        return GROUP.red("torch", text, "install the CUDA build of torch, or use the container", version=number)
    here = "" if num_gpus else ", no GPU is here"
    text = f"{number}, built for " + (f"CUDA {cuda}{here}" if cuda else "CPUs")
    return GROUP.green("torch", text, version=number, cuda=cuda)


def look_at_compiler(system: System) -> Iterator[Finding]:
    """Yield whether the embedded engine's decoder can be compiled and kept."""
    yield compiler(system.environment)


def compiler(environment: Mapping[str, str]) -> Finding:
    """Return the finding about the C compiler, which compiles a small library, and about the place of the result."""
    slower = "the embedded engine decodes several times slower without it"
    search = environment.get("PATH")
    names = [environment.get("CC"), "cc", "gcc", "clang"]
    program = next((path for name in names if name and (path := shutil.which(name, path=search))), None)
    if program is None:
        return GROUP.yellow("C compiler", f"none; {slower}", "apt install gcc, or set CC")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text("#include <math.h>\ndouble probe(double x) { return exp(x); }\n")
        words = [program, "-O1", "-fopenmp", "-shared", "-fPIC", "-o", f"{folder}/probe.so", str(source), "-lm"]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=5, check=False)
    if done.returncode:
        why = next(iter(done.stderr.splitlines()), "no reason given")[:120]
        return GROUP.yellow("C compiler", f"{program} compiles nothing: {why}", f"mend it; {slower}")
    base = Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or "/") / ".cache")
    there = next(folder for folder in (base, *base.parents) if folder.exists())
    if not os.access(there, os.W_OK):
        text = f"{program}, but {base} cannot be written: what is compiled is lost"
        return GROUP.yellow("C compiler", text, f"set XDG_CACHE_HOME to a folder that can be written; {slower}")
    return GROUP.green("C compiler", program)


def look_at_sandbox(system: System) -> Iterator[Finding]:
    """Yield whether models' programs can be kept in: a session is opened behind all walls."""
    yield asyncio.run(_sandbox())


async def _sandbox() -> Finding:
    try:
        async with LocalSandbox(packages=(), spares=0, workers=1) as sandbox, await sandbox.session() as session:
            result = await session.execute("print(6 * 7)")
            walls = list(sandbox.layers)
    except OpenMathError as error:
        remedy = "allow what it names, or run code in `openmath sandbox serve` on another machine"
        return GROUP.red("sandbox", str(error), remedy)
    if result.stdout.strip() != "42":
        text = f"a program did not end well: {result.status}: {result.stderr.strip()[-120:]}"
        return GROUP.red("sandbox", text, "run `openmath sandbox exec` on a small program and read what it says")
    if "namespaces" not in walls:
        text = f"{', '.join(walls)}; no namespaces, an extra layer"
        return GROUP.green("sandbox", text, walls=walls)
    return GROUP.green("sandbox", ", ".join(walls), walls=walls)


PROBES = (
    Probe("software", "Python", look_at_python),
    Probe("software", "packages", look_at_packages),
    Probe("software", "torch", look_at_torch),
    Probe("software", "C compiler", look_at_compiler),
    Probe("software", "sandbox", look_at_sandbox, 20.0, "run `openmath sandbox exec` on a small program"),
)

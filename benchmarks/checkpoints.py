"""Conversion, average and merge of a synthetic bf16 model: `python benchmarks/checkpoints.py --folder DISK`.

Peers on the same disk: copying the same bytes (read all inputs, write the output, flush it), with `--plain` a script
that loads everything, and mergekit's linear merge (`--mergekit PYTHON`: an interpreter that has it). Each runs in its
own process; time is wall clock with imports taken off, CPU seconds are of all its threads, memory is that process's
peak resident set. Where other programs use the machine, half of the CPU seconds say what two free cores would take.

For one quiet measurement in three minutes: `--folder DISK --model qwen3-0.6b --repeat 5` (8 GB on the disk).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from nemo_openmath.checkpoints.convert import hf_to_megatron
from nemo_openmath.checkpoints.formats.safetensors import write_folder
from nemo_openmath.checkpoints.lazy import PIECE, LazyTensor
from nemo_openmath.models.configs import preset
from nemo_openmath.models.hf_mapping import stored_tensors

COPY = """
def work(sources, target):
    import os
    buffer = memoryview(bytearray(8 << 20))
    with open(target, "wb", buffering=0) as out:
        for number, source in enumerate(sources):
            with open(source + "/model.safetensors", "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    if number == 0:
                        out.write(buffer[:count])
        os.fsync(out.fileno())
"""
PLAIN = """
import torch
from safetensors.torch import load_file, save_file
def work(sources, target):
    import os
    models = [load_file(source + "/model.safetensors") for source in sources]
    share = 1 / len(models)
    mean = {k: sum(m[k].float() * share for m in models).to(torch.bfloat16) for k in models[0]}
    os.makedirs(target)
    save_file(mean, target + "/model.safetensors")
    os.fsync(os.open(target + "/model.safetensors", os.O_RDONLY))
"""
MERGEKIT = """
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge, MergeOptions
def work(sources, target):
    config = {"merge_method": "linear", "dtype": "bfloat16",
              "models": [{"model": s, "parameters": {"weight": w}} for s, w in zip(sources, (0.3, 0.7))]}
    run_merge(MergeConfiguration.model_validate(config), target,
              MergeOptions(lazy_unpickle=True, copy_tokenizer=False, write_model_card=False))
"""
CONVERT, COMBINE = (
    "from nemo_openmath.checkpoints.convert import",
    "from nemo_openmath.checkpoints.merge.combine import",
)
OURS = {
    "HF -> Megatron": (f"{CONVERT} hf_to_megatron as f", "f(sources[0], target)", 1),
    "Megatron -> HF": (f"{CONVERT} megatron_to_hf as f", "f(sources[-1], target)", 1),
    "average of 4": (f"{COMBINE} average as f", "f(sources[:4], target)", 4),
    "linear merge": (f"{COMBINE} merge as f", "f('linear', sources[:2], target, weights=[0.3, 0.7])", 2),
}
RUN = """
import json, time
{body}
start, cpu = time.perf_counter(), time.process_time()
work({sources!r}, {target!r})
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([seconds, cpu, peak / 1e6]))
"""


@functools.cache
def noise(seed: int) -> torch.Tensor:
    return torch.randn(PIECE, generator=torch.Generator().manual_seed(seed)).mul_(0.02).to(torch.bfloat16)


class Random(LazyTensor):
    """bf16 noise, repeated from one block."""

    dtype = torch.bfloat16

    def __init__(self, shape: tuple[int, ...], seed: int):
        self.shape = shape
        self.block = noise(seed)

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self.block[: stop - start]


def make(folder: Path, model: str, seed: int) -> None:
    config, tensors = preset(model), {}
    for entry in stored_tensors(config):
        for name, shape in entry.sources:
            tensors[name] = Random(shape, seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    write_folder(folder, tensors)


def measure(body: str, sources: list[Path], target: Path, python: str = sys.executable) -> tuple[float, float, float]:
    """(seconds, CPU seconds, peak GB); the output is removed."""
    code = RUN.format(body=body, sources=[str(source) for source in sources], target=str(target))
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr)
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    seconds, cpu, memory = json.loads(result.stdout.strip().splitlines()[-1])
    return seconds, cpu, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure (25 GB free)")
    parser.add_argument("--model", default="qwen2.5-1.5b")
    parser.add_argument("--plain", action="store_true", help="also a plain script, which holds all models in memory")
    parser.add_argument("--mergekit", metavar="PYTHON")
    parser.add_argument("--repeat", type=int, default=2, help="the best of this many is shown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as room:
        sources = [Path(room) / f"model{number}" for number in range(4)]
        for seed, source in enumerate(sources):
            make(source, options.model, seed)
        size = (sources[0] / "model.safetensors").stat().st_size
        target, megatron = Path(room) / "target", hf_to_megatron(sources[0], Path(room) / "megatron")
        print(f"{options.model}, {size / 1e9:.2f} GB, best of {options.repeat}; load average {os.getloadavg()[0]:.1f}")
        print(f"{'':32}{'seconds':>9}{'of copy':>9}{'CPU s':>9}{'of copy':>9}{'peak GB':>9}", flush=True)
        copies: dict[int, tuple[float, float]] = {}

        def line(name: str, body: str, count: int, python: str = sys.executable) -> None:
            runs = [measure(body, [*sources[:count], megatron], target, python) for _ in range(options.repeat)]
            seconds, cpu = min(run[0] for run in runs), min(run[1] for run in runs)
            wall, busy = copies.setdefault(count, (seconds, cpu))
            memory = max(run[2] for run in runs)
            print(f"{name:32}{seconds:9.2f}{seconds / wall:9.2f}{cpu:9.2f}{cpu / busy:9.2f}{memory:9.2f}", flush=True)

        for count in (1, 2, 4):
            line(f"copy: {count} read, 1 written", COPY.replace("(sources)", "(sources[:-1])"), count)
        for name, (imports, call, count) in OURS.items():
            line(name, f"{imports}\ndef work(sources, target):\n    {call}\n", count)
        plain = PLAIN.replace("in sources]", "in sources[:-1]]")
        if options.plain:
            line("plain script, average of 4", plain, 4)
            line("plain script, merge of 2", plain, 2)
        if options.mergekit:
            line("mergekit, linear merge", MERGEKIT, 2, options.mergekit)


if __name__ == "__main__":
    main()

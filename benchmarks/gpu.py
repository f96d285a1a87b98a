"""What one GPU must show before a run is trusted to it: results against fp32 and transformers, speed, saves, bits.

    python benchmarks/gpu.py [SECTION ...] --output OUT [--dry]

Each line is PASS or FAIL with the number that was measured and its bound, or INFO. OUT/gpu.json has them all, of this
call and of calls before it with the same OUT. The exit status is 1 where a line says FAIL. Models have real shapes and
random weights: nothing is downloaded, and nothing but this checkout, torch, transformers, megatron-core and the
package's own small dependencies is needed. ``--dry`` rehearses all sections on the CPU with tiny shapes: speed has no
bounds there. Sections, in the order of their worth:

* kernel: flash attention of packs, and of a rank's chunks over gathered keys, in bf16, forward and backward, against
  fp32. Rounding alone makes 2e-3 to 6e-3 (a CPU's); above 1.5e-2 a mask or an order is wrong.
* model: loss and every gradient of a model (qwen2; qwen3 with tied embeddings), in fp32 and in bf16 with each
  recomputation, against transformers sample by sample. Expect a loss within 1e-5 in fp32 and 3e-3 in bf16.
* speed: training steps at the shape of Qwen2.5-1.5B with packs of 32K: MFU, memory, and what waits for the GPU. Above
  0.2 passes; OUT/step.txt is the profile of a step.
* loss: the fused loss and its gradients against fp32; milliseconds by size of a block of logits.
* save: a training with asynchronous checkpoints, one that lost its last steps, both optimizers: the losses after
  going on are those of the training that was not interrupted, within 2e-3.
* engine: greedy tokens of the embedded engine: in fp32 those of transformers; in bf16 none that fp32 finds clearly less
  likely than the best (0.3 standard deviations of the logits). Time of a step with 1, 8 and 64 requests.
* sdpa: the first attention to each new length of a prompt, as the engine sets kernels: below a millisecond.
* drafter: a drafter's loss falls, and ends where it does on the CPU.
* ring: the ring of context parallelism with all ranks in this process (CP 2 and 4): its forward and backward passes as
  they are, messages handed over in memory; against the all-gather, and both against fp32.
* deterministic: two trainings with ``deterministic: true``, in a process of their own: the same losses and weights, bit
  for bit.
* certify: the first step of a bf16 training against its loss certificate (3e-3); one whose masks are a token late is
  refused.

What one GPU cannot show: NCCL between GPUs, tensor and pipeline parallelism.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout alone is enough

from nemo_openmath.training.certificate.alone import world_of_one

SECTIONS = (
    "kernel",
    "model",
    "speed",
    "loss",
    "save",
    "engine",
    "sdpa",
    "drafter",
    "ring",
    "deterministic",
    "certify",
)
OWN_PROCESS = "deterministic"  # its settings must be made before CUDA is in use


@dataclass(frozen=True)
class Check:
    """One number against its bound."""

    section: str
    name: str
    passed: bool
    measured: float
    expected: str
    details: dict[str, Any]


@dataclass
class Report:
    """The checks of a call. Sections tell it what they measured."""

    dry: bool
    output: Path
    section: str = ""
    checks: list[Check] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def below(self, name: str, measured: float, bound: float, **details: Any) -> None:
        """Note a number that must be below ``bound``; NaN is not."""
        self._add(name, measured < bound, measured, f"< {bound:g}", details)

    def at_least(self, name: str, measured: float, bound: float, **details: Any) -> None:
        """Note a number that must be ``bound`` or more; NaN is not."""
        self._add(name, measured >= bound, measured, f">= {bound:g}", details)

    def note(self, name: str, **details: Any) -> None:
        """Note numbers that have no bound."""
        self.notes.append({"section": self.section, "name": name, **details})
        print(f"INFO {self.section}: {name} {json.dumps(details, default=str)}", flush=True)

    def _add(self, name: str, passed: bool, measured: float, expected: str, details: dict[str, Any]) -> None:
        self.checks.append(Check(self.section, name, bool(passed), float(measured), expected, details))
        shown = f" {json.dumps(details, default=str)}" if details else ""
        print(f"{'PASS' if passed else 'FAIL'} {self.section}: {name} {measured:.4g} ({expected}){shown}", flush=True)

    def failure(self, error: BaseException) -> None:
        """Note that the section itself failed."""
        traceback.print_exc()
        self._add("ran to its end", False, 0, ">= 1", {"error": f"{type(error).__name__}: {error}"[:500]})

    def run_apart(self, section: str) -> None:
        """Run a section in a process of its own, and take over what it reports."""
        command = [sys.executable, __file__, section, "--output", str(self.output / section)]
        file = self.output / section / "gpu.json"
        file.unlink(missing_ok=True)  # of a call before
        process = subprocess.run([*command, *(["--dry"] if self.dry else [])], timeout=300, check=False)
        if not file.exists():
            raise RuntimeError(f"the process of section {section} reported nothing (exit status {process.returncode})")
        theirs = json.loads(file.read_text())
        self.checks += [Check(**check) for check in theirs["checks"]]
        self.notes += theirs["notes"]

    def write(self) -> None:
        """Write OUT/gpu.json; results of other sections that lie there stay."""
        import torch

        file, new = self.output / "gpu.json", set(self.seconds)
        before = json.loads(file.read_text()) if file.exists() else {"checks": [], "notes": [], "seconds": {}}
        on_gpu = torch.cuda.is_available() and not self.dry
        results = {
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "torch": torch.__version__,
            "dry": self.dry,
            "seconds": before["seconds"] | self.seconds,
            "checks": [check for check in before["checks"] if check["section"] not in new],
            "notes": [note for note in before["notes"] if note["section"] not in new],
        }
        results["checks"] += [asdict(check) for check in self.checks]
        results["notes"] += self.notes
        file.write_text(json.dumps(results, indent=1, default=str))


def run(sections: list[str], report: Report) -> None:
    """Run ``sections`` in this process, which is a world of one rank."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    import gpu_sections

    for section in sections:
        report.section, started = section, time.perf_counter()
        try:
            if section == OWN_PROCESS and len(sections) > 1:
                report.run_apart(section)
            else:
                getattr(gpu_sections, section)(report)
        except Exception as error:
            report.failure(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        report.seconds[section] = round(time.perf_counter() - started, 1)
        print(f"== {section}: {report.seconds[section]} s", flush=True)
        report.write()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--output", type=Path, required=True, help="folder of gpu.json and of the profile")
    parser.add_argument("--dry", action="store_true", help="rehearse on the CPU, with tiny shapes")
    options = parser.parse_args()
    sections = options.sections or list(SECTIONS)
    if unknown := [section for section in sections if section not in SECTIONS]:
        parser.error(f"no section is named {', '.join(unknown)}: use {', '.join(SECTIONS)}")
    options.output.mkdir(parents=True, exist_ok=True)
    report = Report(options.dry, options.output)
    if sections == [OWN_PROCESS]:
        from nemo_openmath.training.runtime import be_deterministic

        be_deterministic()
    with world_of_one("cpu" if options.dry else "cuda"):
        run(sections, report)
    failed = [f"{check.section}: {check.name}" for check in report.checks if not check.passed]
    print(f"{len(report.checks)} checks, failed: {'; '.join(failed) or 'none'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

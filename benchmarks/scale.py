"""Every stage of data generation that needs no model, at N, 2N and 4N records and, by that, at the paper's scale.

    OMP_NUM_THREADS=1 python benchmarks/scale.py [--records N] [--jobs 1,4,16] [--kill 1] [--peers PYTHON]

Synthetic solutions (``scale_records.py``) are written by the product itself, and each stage runs as ``openmath recipe
run --only`` in a process of its own. Its CPU seconds, bytes (rchar and wchar of /proc, children that it waited for
among them) and peak memory (of its largest process) are those that the system counts. What the same stage costs with 32
short records is its start, and is taken off before a rate is quoted.

``--jobs 1,4,16``  each stage as an array: one job after the other, in fresh processes.
``--kill TIMES``   each stage is killed with SIGKILL at a drawn moment and run again; what it left must be the same.
``--peers PYTHON`` datatrove's filter on the same records; PYTHON is an interpreter whose environment has datatrove[io].

All data is below --folder and removed at the end.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

HERE = Path(__file__).parent
SAMPLES = 8  # CoT solutions of a problem

# Numbers of arXiv 2504.16891. Made of one problem: 32 probe samples (2.3). The TIR samples of the last iteration that
# were generated (2.5M) are assumed; the paper says what was kept (1.7M).
PROBLEMS = 540e3  # 2.1
COT_MADE, COT_KEPT = 5.2e6, 3.2e6  # 2.3
PROBED = 17.3e6  # 2.3: 540K x 32
TIR_MADE, TIR_KEPT = 1.2e6 + 0.7e6 + 2.5e6, 15e3 + 260e3 + 1.7e6  # 3.2, 3.3
GROUPS = 1.0e6  # 4.2
ROWS = 3.2e6 + 1.7e6 + 0.57e6  # 5: CoT, TIR, GenSelect


# CoT and the probe are graded last: the status looks for a TIR solution to show in what was graded last, and there is
# none in these.
RECIPE = """\
name: scale
seed: {seed}
teacher: {{url: "{teacher}", model: teacher, api: chat, tokenizer: ../tokenizer}}
stages:
  problems: {{run: scale.problems, problems: {problems}}}
  cot: {{run: scale.solutions, from: problems, mode: cot, samples: 8, {texts}}}
  probe: {{run: scale.solutions, from: problems, mode: probe, samples: 16, {texts}}}
  tir: {{run: scale.solutions, from: problems, mode: tir, samples: 4, {texts}}}
  labelled: {{run: solutions.majority_answers, from: {{problems: problems, generations: cot}}}}
  tir_graded: {{run: solutions.grade, from: {{generations: tir, problems: labelled}}}}
  tir_kept: {{run: solutions.filter, from: tir_graded}}
  cot_graded: {{run: solutions.grade, from: {{generations: cot, problems: labelled}}}}
  cot_judged: {{run: judging.judge, from: {{generations: cot_graded, problems: labelled}}, engine: teacher}}
  cot_kept: {{run: solutions.filter, from: cot_judged}}
  cot_limited: {{run: solutions.filter, from: cot_judged, per_problem: 1}}
  probe_graded: {{run: solutions.grade, from: {{generations: probe, problems: labelled}}}}
  measured: {{run: solutions.hardness, from: {{problems: labelled, generations: probe_graded}}}}
  groups:
    {{run: genselect.groups, from: {{problems: measured, generations: cot_judged}}, sizes: [2, 16], groups: 8}}
  rows: {{run: solutions.rows, from: [cot_kept, tir_kept]}}
  selected: {{run: sft.select, from: rows, choice: {{modes: [cot, tir]}}, rules: {{box: true}}}}
  few_rows: {{run: solutions.rows, from: cot_limited}}
  tokens: {{run: sft.tokenize, from: {{rows: few_rows, model: ../tokenizer}}, workers: 1}}
  read: {{run: sft.read, from: ./published.jsonl, workers: 1}}
"""


@dataclass(frozen=True)
class Step:
    """One stage of the recipe."""

    name: str
    record: str
    """The class of its records; empty where it makes none."""
    counted: tuple[str, ...]
    """The stages whose records it is counted by. Those that only make data for others have none: nobody measures
    them."""
    goes_in: float = 0.0
    """Records of a paper-scale run; 0: it has no such stage."""
    comes_out: float = 0.0


STEPS = (
    Step("problems", "Problem", (), 0, PROBLEMS),
    Step("cot", "Generation", (), 0, COT_MADE),
    Step("probe", "Generation", (), 0, PROBED),
    Step("tir", "Generation", (), 0, TIR_MADE),
    Step("labelled", "Problem", ("cot",), COT_MADE, PROBLEMS),
    Step("tir_graded", "Generation", ("tir",), TIR_MADE, TIR_MADE),
    Step("tir_kept", "Generation", ("tir_graded",), TIR_MADE, TIR_KEPT),
    Step("cot_graded", "Generation", ("cot",), COT_MADE, COT_MADE),
    Step("cot_judged", "Generation", ("cot_graded",), COT_MADE, COT_MADE),
    Step("cot_kept", "Generation", ("cot_judged",), COT_MADE, COT_KEPT),
    Step("cot_limited", "Generation", ("cot_judged",)),
    Step("probe_graded", "Generation", ("probe",), PROBED, PROBED),
    Step("measured", "Problem", ("probe_graded",), PROBED, PROBLEMS),
    Step("groups", "Group", ("cot_judged",), COT_MADE, GROUPS),
    Step("rows", "SftRow", ("cot_kept", "tir_kept"), ROWS, ROWS),
    Step("selected", "SftRow", ("rows",), ROWS, ROWS),
    Step("few_rows", "SftRow", ()),
    Step("tokens", "", ("few_rows",), ROWS, ROWS),
    Step("read", "SftRow", ("read",), ROWS, ROWS),
)
STEP = {step.name: step for step in STEPS}
NOISE_S = 0.05  # of a start: less than this is no measurement
VIEWS = ("status", "report")
MEASURED = tuple(step.name for step in STEPS if step.counted)


# -- one process, and what it cost -------------------------------------------------------------------------------------


@dataclass
class Cost:
    """What one process and the children that it waited for took."""

    cpu: float
    wall: float
    read: int
    written: int
    peak: int
    output: str = field(default="", repr=False)

    def without(self, start: Cost) -> Cost:
        """Return the cost without that of a start; never less than a thousandth of a second."""
        return Cost(
            max(self.cpu - start.cpu, 1e-3),
            max(self.wall - start.wall, 1e-3),
            max(self.read - start.read, 0),
            max(self.written - start.written, 0),
            self.peak,
        )


def measure(command: Sequence[str], folder: Path, kill_after: float | None = None, forgiven: str = "") -> Cost:
    """Run a command in ``folder`` to its end, or kill it after so many seconds. A failure ends the benchmark, unless it
    is killed or says what is ``forgiven``."""
    before, start = _bytes(), time.perf_counter()
    with (folder / "log.txt").open("w+b") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        timer = threading.Timer(kill_after or 0.0, process.send_signal, [signal.SIGKILL])
        if kill_after is not None:
            timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        log.seek(0)
        output = log.read().decode(errors="replace")
    if process.returncode and kill_after is None and not (forgiven and forgiven in output):
        raise SystemExit(f"{' '.join(command)}\n{output[-3000:]}\nended with {process.returncode}")
    read, written = (after - earlier for after, earlier in zip(_bytes(), before, strict=True))
    return Cost(usage.ru_utime + usage.ru_stime, wall, read, written, usage.ru_maxrss << 10, output)


def _bytes() -> tuple[int, int]:
    """What this process and its ended children read and wrote by system calls."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"]), int(lines["wchar"])


@contextmanager
def silent_teacher() -> Iterator[str]:
    """Serve the list of models, and nothing else: judging opens its engine, and must not ask it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"object": "list", "data": [{"id": "teacher", "object": "model"}]}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()


# -- one number of records ---------------------------------------------------------------------------------------------


class Scale:
    """A run of the recipe with one number of records, in a folder of its own."""

    def __init__(self, folder: Path, records: int, length: float, options: argparse.Namespace, teacher: str):
        self.folder, self.length, self.options = folder, length, options
        self.problems = max(1, records // SAMPLES)
        self.records = self.problems * SAMPLES
        self.run = folder / "run"
        folder.mkdir(parents=True)
        texts = f"length: {length}, wide: {options.wide}, ids: {'false' if options.no_ids else 'true'}"
        recipe = RECIPE.format(seed=options.seed, teacher=teacher, problems=self.problems, texts=texts)
        (folder / "scale.yaml").write_text(recipe)

    def tool(self, what: str, path: Path, *more: str) -> Cost:
        """Run one of the programs of scale_records.py on the corpus of this run."""
        corpus = [f"--seed={self.options.seed}", f"--problems={self.problems}", f"--samples={SAMPLES}"]
        corpus += [
            f"--length={self.length}",
            f"--wide={self.options.wide}",
            *(["--no-ids"] if self.options.no_ids else []),
        ]
        return measure([sys.executable, str(HERE / "scale_records.py"), what, str(path), *more, *corpus], self.folder)

    def openmath(self, *arguments: str) -> list[str]:
        return [sys.executable, str(HERE / "scale_records.py"), "openmath", "recipe", *arguments]

    def command(self, name: str, shard: str = "0/1") -> list[str]:
        what = ["run", "scale.yaml", *self.options.set, "--output", "run", "--only", name, "--shard", shard]
        return self.openmath(*what)

    def view(self, verb: str) -> Cost:
        return measure(self.openmath(verb, "run"), self.folder)

    def stage(self, name: str) -> Cost:
        return measure(self.command(name), self.folder)

    def job(self, name: str, shard: int, shards: int) -> Cost:
        """Run one job of an array. That the stage cannot be divided stands in the output, and is no failure."""
        return measure(self.command(name, f"{shard}/{shards}"), self.folder, forgiven="cannot be split")

    def manifest(self, name: str) -> dict:
        return json.loads((self.run / name / "manifest.json").read_bytes())

    def outcome(self, name: str) -> dict:
        """Return all that a stage says that it left; of records, what is read of them as well."""
        manifest = self.manifest(name)
        result = {key: manifest[key] for key in ("digest", "counts", "drops")}
        if record := STEP[name].record:
            result |= json.loads(self.tool("content", self.run / name, record).output.splitlines()[-1])
        return result

    def size(self, name: str) -> int:
        return sum(path.stat().st_size for path in (self.run / name).rglob("*") if path.is_file())

    def count(self, name: str) -> int:
        """Return the number of records that a stage takes."""
        return sum(self.comes_out(source) for source in STEP[name].counted)

    def comes_out(self, name: str) -> int:
        manifest = self.manifest(name)
        return manifest["counts"]["records"] if STEP[name].record else manifest["facts"]["samples"]


@dataclass
class Measurement:
    """A stage at one number of records; ``cost`` is without the start."""

    taken: int
    left: int
    cost: Cost
    disk: int


@dataclass
class Fit:
    """A stage at any number of records, from its smallest and largest measurement: seconds and bytes a record."""

    cpu: float
    read: float
    written: float
    disk: float
    """Bytes of a record that comes out."""
    memory: float
    job_cpu: tuple[float, float] = (0.0, 0.0)
    """(a, b): a job of N costs a + b/N a record of the whole stage."""
    job_read: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, small: Measurement, large: Measurement) -> Fit:
        if small is large:  # one number of records was measured
            small = Measurement(0, 0, Cost(0.0, 0.0, 0, 0, large.cost.peak), 0)
        more = max(large.taken - small.taken, 1)
        cpu = (large.cost.cpu - small.cost.cpu) / more
        if cpu <= 0:
            cpu = large.cost.cpu / max(large.taken, 1)
        return cls(
            cpu,
            max(large.cost.read - small.cost.read, 0) / more,
            max(large.cost.written - small.cost.written, 0) / more,
            large.disk / max(large.left, 1),
            (large.cost.peak - small.cost.peak) / more,
        )


def needed(chosen: Sequence[str]) -> list[Step]:
    """Return the chosen stages and all that they read, directly or not, in the recipe's order."""
    stages = yaml.safe_load(RECIPE.format(seed=0, teacher="", problems=1, texts="ids: true"))["stages"]
    names, todo = set(), list(chosen)
    while todo:
        names.add(name := todo.pop())
        inputs = stages[name].get("from", [])
        listed = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
        todo += [n for part in listed for n in (part if isinstance(part, list) else [part]) if n in stages]
    return [step for step in STEPS if step.name in names]


def measure_starts(scale: Scale, chosen: Sequence[str]) -> dict[str, Cost]:
    """Return what each stage costs with next to no records: the median of three runs for those that are measured."""
    scale.tool("prepare", scale.folder)
    starts = {}
    for step in needed(chosen):
        costs = [scale.stage(step.name)]
        while step.name in chosen and len(costs) < 3:
            shutil.rmtree(scale.run / step.name)
            costs.append(scale.stage(step.name))
        starts[step.name] = median(costs)
    for verb in VIEWS:
        starts[verb] = median([scale.view(verb) for _ in range(3)])
    usual = median(list(starts.values()))
    print(f"a start: {usual.cpu:.2f} s CPU, {mb(usual.read)} MB read, {mb(usual.peak)} MB of memory (taken off below)")
    return starts


def median(costs: Sequence[Cost]) -> Cost:
    middle = statistics.median
    return Cost(
        middle(c.cpu for c in costs),
        middle(c.wall for c in costs),
        int(middle(c.read for c in costs)),
        int(middle(c.written for c in costs)),
        int(middle(c.peak for c in costs)),
    )


def measure_stages(scale: Scale, chosen: Sequence[str], starts: dict[str, Cost]) -> dict[str, Measurement]:
    """Run all stages in their order; print and return what the chosen ones cost."""
    scale.tool("prepare", scale.folder)
    print(
        f"\n{scale.records:,} CoT records of {scale.problems:,} problems; twice as many probe samples, half as many TIR"
    )
    heading = ("stage", "records", "left", "CPU s", "wall s", "records/s", "by wall", "MB read", "MB written")
    print(row(*heading, "peak MB", "MB on disk", "B a record"), flush=True)
    results = {}
    for step in needed(chosen):
        cost = scale.stage(step.name).without(starts[step.name])
        left, disk = scale.comes_out(step.name), scale.size(step.name)
        taken = scale.count(step.name) if step.counted else left
        if step.name in chosen or not step.counted:
            results[step.name] = Measurement(taken, left, cost, disk)
        if step.name in chosen:
            rates = tuple(f"{taken / t:,.0f}" if t >= NOISE_S else "-" for t in (cost.cpu, cost.wall))
            sizes = (mb(cost.read), mb(cost.written), mb(cost.peak), mb(disk), f"{disk / max(left, 1):,.0f}")
            counts = (f"{taken:,}", f"{left:,}", f"{cost.cpu:.2f}", f"{cost.wall:.2f}")
            print(row(step.name, *counts, *rates, *sizes), flush=True)
    for verb in VIEWS:
        cost = scale.view(verb).without(starts[verb])
        results[verb] = Measurement(scale.records, 0, cost, 0)
        sizes = (mb(cost.read), mb(cost.written), mb(cost.peak), "-", "-")
        print(row(verb, f"{scale.records:,}", "-", f"{cost.cpu:.2f}", f"{cost.wall:.2f}", "-", "-", *sizes), flush=True)
    for name in {"tir_graded", "cot_graded", "probe_graded"} & results.keys():
        facts = scale.manifest(name)["facts"]
        if undecided := facts.get("unknown", 0) + facts.get("timeout", 0):
            print(f"{name}: {undecided} verdicts are open, and nobody judges them here")
    return results


def measure_jobs(
    scale: Scale, chosen: Sequence[str], jobs: Sequence[int], starts: dict[str, Cost], fits: dict[str, Fit]
) -> None:
    """Run the chosen stages as arrays. The result must be that of one job."""
    print("\narrays: the jobs run one after the other, each in a fresh process, the last writes the manifest")
    print("x: CPU seconds (bytes read) of one job alone, divided by those of the array's largest job")
    heading = (
        "stage",
        "jobs",
        "CPU s, sum",
        "largest",
        "mean",
        "x, CPU",
        "MB read, sum",
        "largest",
        "x, bytes",
        "result",
    )
    print(row(*heading), flush=True)
    for step in STEPS:
        if step.name not in chosen:
            continue
        digest, start = scale.manifest(step.name)["digest"], starts[step.name]
        alone, means = None, {}
        for number in jobs:
            shutil.rmtree(scale.run / step.name)
            costs = [scale.job(step.name, i, number) for i in range(number)]
            if any("cannot be split" in cost.output for cost in costs):
                print(row(step.name, str(number), "cannot be divided"), flush=True)
                scale.stage(step.name)
                break
            costs = [cost.without(start) for cost in costs]
            cpu, read = [c.cpu for c in costs], [c.read for c in costs]
            alone = alone or (max(cpu), max(read))
            means[number] = statistics.mean(cpu), statistics.mean(read)
            same = scale.manifest(step.name)["digest"] == digest
            seconds = (f"{sum(cpu):.2f}", f"{max(cpu):.2f}", f"{means[number][0]:.2f}", f"{alone[0] / max(cpu):.1f}")
            sizes = (mb(sum(read)), mb(max(read)), f"{alone[1] / max(max(read), 1):.1f}")
            print(row(step.name, str(number), *seconds, *sizes, "the same" if same else "ANOTHER"), flush=True)
            if not same:
                raise SystemExit(f"{step.name}: {number} jobs left something else than one job did")
        if len(means) > 1:
            taken, first, last = scale.count(step.name), min(means), max(means)
            lines = [_line(first, means[first][i] / taken, last, means[last][i] / taken) for i in (0, 1)]
            fits[step.name].job_cpu, fits[step.name].job_read = lines


def _line(first: int, cost: float, last: int, lower: float) -> tuple[float, float]:
    """Return (a, b) of a + b/N through the costs of two numbers of jobs; neither is below 0."""
    b = max((cost - lower) / (1 / first - 1 / last), 0.0)
    return max(cost - b / first, 0.0), b


def kill_stages(scale: Scale, chosen: Sequence[str], starts: dict[str, Cost]) -> None:
    """Kill each chosen stage at a drawn moment, run it again, and hold the result to that of an undisturbed run."""
    rng = random.Random(scale.options.seed)
    print("\nkilled with SIGKILL, then run again")
    print(row("stage", "ran, s", "killed at, s", "MB there", "again, s", "records", "drops", "result"), flush=True)
    for step in STEPS:
        if step.name not in chosen:
            continue
        expected, folder = scale.outcome(step.name), scale.run / step.name
        shutil.rmtree(folder)
        undisturbed = scale.stage(step.name).wall
        for _ in range(scale.options.kill):
            finished, moment = True, undisturbed
            for _ in range(5):  # until it is killed before its end
                shutil.rmtree(folder, ignore_errors=True)
                moment = rng.uniform(0.8 * starts[step.name].wall, moment)
                measure(scale.command(step.name), scale.folder, kill_after=moment)
                if not (finished := (folder / "manifest.json").exists()):
                    break
            there = scale.size(step.name) if folder.exists() else 0
            again = scale.stage(step.name)
            outcome = scale.outcome(step.name)
            result = "the same" if outcome == expected else "ANOTHER"
            counts = (str(expected.get("records", "-")), str(expected["counts"]["drops"]))
            times = (f"{undisturbed:.2f}", f"{moment:.2f}", mb(there), f"{again.wall:.2f}")
            print(row(step.name, *times, *counts, result, "(it had finished)" if finished else ""), flush=True)
            if outcome != expected:
                raise SystemExit(f"{step.name}: after the kill it left something else: {expected} {outcome}")


def measure_peer(scale: Scale, python: str, own_start: Cost) -> None:
    """Run datatrove's filter over the same solutions, as one JSONL file, in turn with the stage cot_kept."""
    data, empty = scale.folder / "peer", scale.folder / "empty"
    scale.tool("rows", data / "rows.jsonl")
    empty.mkdir()
    (empty / "rows.jsonl").touch()

    def run(source: Path) -> Cost:
        output = scale.folder / "peer-output"
        for folder in (output, Path(f"{output}-logs")):
            shutil.rmtree(folder, ignore_errors=True)
        output.mkdir()
        return measure([python, str(HERE / "scale_datatrove.py"), str(source), str(output)], scale.folder)

    start, peers, own = median([run(empty) for _ in range(3)]), [], []
    for _ in range(3):
        peers.append(run(data))
        shutil.rmtree(scale.run / "cot_kept")
        own.append(scale.stage("cot_kept"))
    best = min(peers, key=lambda c: c.cpu)
    ours = min(own, key=lambda c: c.cpu).without(own_start)
    kept, cost = int(best.output.split()[-1]), best.without(start)
    size = (data / "rows.jsonl").stat().st_size
    print(
        f"\ndatatrove's filter: {scale.records:,} records, {mb(size)} MB of uncompressed JSONL; "
        "best of 3, starts taken off"
    )
    for name, taken in (("datatrove", cost), ("cot_kept", ours)):
        print(f"  {name:10} {taken.cpu:6.2f} s CPU, {taken.wall:6.2f} s, {scale.records / taken.cpu:,.0f} records/s")
    print(f"  the product's time / datatrove's: {ours.cpu / cost.cpu:.2f} by CPU, {ours.wall / cost.wall:.2f} by wall")
    ours_kept = scale.comes_out("cot_kept")
    if kept != ours_kept:
        raise SystemExit(f"datatrove kept {kept}, the product {ours_kept}: they did not do the same")


# -- at the paper's counts ---------------------------------------------------------------------------------------------


def extrapolate(fits: dict[str, Fit], with_jobs: bool) -> None:
    """Print hours, bytes and memory at the paper's numbers of records, linear in them."""
    print("\nat the paper's counts (arXiv 2504.16891), linear in the records; starts left out")
    print(f"  problems {k(PROBLEMS)} (2.1); CoT {k(COT_MADE)}, kept {k(COT_KEPT)} (2.3)")
    print(f"  probe {k(PROBED)} = 540K x 32 (2.3)")
    print(f"  TIR {k(TIR_MADE)} = 1.2M (3.2) + 700K (3.3) + 2.5M (assumed), kept {k(TIR_KEPT)} (3.2, 3.3);")
    print(f"  groups {k(GROUPS)} (4.2); rows {k(ROWS)} = 3.2M + 1.7M + 0.57M (5)")
    print("B of memory: how much the peak grows by each record that goes in, from the smallest to the largest run")
    if with_jobs:
        print("64 jobs: a job's cost as a + b/jobs from the smallest and largest array; hours of one of the 64")
    heading = ("stage", "goes in", "comes out", "records/s", "1 job, h", "64 jobs, h", "TB read", "64 jobs")
    print(row(*heading, "TB on disk", "B of memory"))
    hours = array_hours = disk = 0.0
    for step in STEPS:
        if (fit := fits.get(step.name)) is None or not (step.goes_in or step.comes_out):
            continue
        size = fit.disk * step.comes_out / 1e12
        disk += size if step.name not in ("selected", "read") else 0.0
        counts = (k(step.goes_in) if step.goes_in else "-", k(step.comes_out))
        if not step.counted:
            print(row(step.name, *counts, "-", "-", "-", "-", "-", f"{size:.3f}", "-"))
            continue
        alone = fit.cpu * step.goes_in / 3600
        hours += alone
        array, array_read = "-", "-"
        if with_jobs and any(fit.job_cpu):
            array_alone = (fit.job_cpu[0] + fit.job_cpu[1] / 64) * step.goes_in / 3600
            array = f"{array_alone:.3f}"
            array_read = f"{(64 * fit.job_read[0] + fit.job_read[1]) * step.goes_in / 1e12:.2f}"
        else:
            array_alone = alone / 64 if step.name == "tokens" else alone
        array_hours += array_alone
        numbers = (f"{1 / fit.cpu:,.0f}", f"{alone:.2f}", array, f"{fit.read * step.goes_in / 1e12:.2f}", array_read)
        print(row(step.name, *counts, *numbers, f"{size:.3f}", f"{fit.memory:,.0f}"))
    for verb in VIEWS:
        fit = fits[verb]
        numbers = ("-", f"{fit.cpu * COT_MADE / 3600:.2f}", "-", f"{fit.read * COT_MADE / 1e12:.2f}", "-", "-")
        print(row(verb, k(COT_MADE), "-", *numbers, f"{fit.memory:,.0f}"))
    print(f"in all: {hours:.1f} h one job after the other; {disk:.2f} TB on disk (without selected and read)")
    if with_jobs:
        print(f"        {array_hours:.2f} h on one 64-core node (tokens: processes of its own on all cores)")


def mb(size: float) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"


def k(count: float) -> str:
    return f"{count / 1e6:.2f}M" if count >= 1e6 else f"{count / 1e3:.0f}K"


def row(first: str, *cells: str) -> str:
    return f"{first:13}" + "".join(f" {cell:>12}" for cell in cells)


def package() -> Path:
    """Return the folder of the package that is measured."""
    spec = importlib.util.find_spec("nemo_openmath")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("nemo_openmath is not installed")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def header(options: argparse.Namespace) -> None:
    git = ["git", "-C", str(package()), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "no git"
    ids = "without ids" if options.no_ids else "with ids"
    print(f"{package()} ({commit}), Python {sys.version.split()[0]}, {len(os.sched_getaffinity(0))} cores")
    overrides = " ".join(options.set) or "no overrides"
    print(f"seed {options.seed}, {ids}, {options.wide:.0%} of the texts beyond Latin-1, {overrides}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200, help="N, the CoT solutions of the smallest run")
    parser.add_argument("--folder", type=Path, help="where the data lies; default: a temporary folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stages", help="names, with commas; default: all; what they read runs, too")
    parser.add_argument("--sizes", default="1,2,4", help="multiples of N")
    parser.add_argument("--jobs", default="", help="numbers of jobs of an array, such as 1,4,16; at the largest size")
    parser.add_argument("--kill", type=int, default=0, metavar="TIMES", help="kill each stage; at the largest size")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of an environment with datatrove[io]")
    parser.add_argument("--wide", type=float, default=0.05, help="share of texts with characters beyond Latin-1")
    parser.add_argument("--length", type=float, default=1.0, help="share of the usual length of the texts")
    parser.add_argument("--no-ids", action="store_true", help="solutions without token ids")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an override of the recipe, such as partitions=16",
    )
    parser.add_argument("--keep", action="store_true", help="leave the data")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = str(package().parent)  # the stages run in another folder
    chosen = options.stages.split(",") if options.stages else MEASURED
    if unknown := set(chosen) - set(MEASURED):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(MEASURED)}")
    if options.peers and "cot_kept" not in chosen:
        parser.error("--peers compares with the stage cot_kept: name it among --stages")
    jobs = [int(number) for number in options.jobs.split(",") if number]
    sizes = [int(number) for number in options.sizes.split(",")]
    parent = options.folder or Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=parent)).resolve()
    header(options)
    try:
        with silent_teacher() as teacher:
            tiny = Scale(folder / "start", 4 * SAMPLES, 0.01, options, teacher)
            starts, results = measure_starts(tiny, chosen), []
            shutil.rmtree(tiny.folder)
            for number in sizes:
                scale = Scale(folder / str(number), number * options.records, options.length, options, teacher)
                results.append(measure_stages(scale, chosen, starts))
                if number != sizes[-1] and not options.keep:
                    shutil.rmtree(scale.folder)
            fits = {name: Fit.of(results[0][name], results[-1][name]) for name in results[0]}
            if options.peers:
                measure_peer(scale, options.peers, starts["cot_kept"])
            if options.kill:
                kill_stages(scale, chosen, starts)
            extrapolate(fits, with_jobs=False)
            if jobs:
                measure_jobs(scale, chosen, jobs, starts, fits)
                extrapolate(fits, with_jobs=True)
    finally:
        if options.keep:
            print(f"the data: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

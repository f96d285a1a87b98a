"""Published rows to SFT rows: by one and by two processes, as an array of jobs, and from Parquet.

    OMP_NUM_THREADS=1 python benchmarks/reading.py [--rows 4000] [--repeat 3]

Rows are seeded solutions of 34,000 characters on average, in JSON Lines and in Parquet (row groups of 20 rows).

- Processes: rows a second of 1, 2, ... processes, in turns. What the first process does by itself bounds the rate at
  any number of them.
- Array: the jobs of arrays of 1, 4 and 16, one after the other in this process, by CPU seconds and bytes read (rchar of
  /proc). The rate of an array is that of its slowest job.
- Memory: the peak of a process that reads a Parquet file of N and of 4N rows in one row group.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

# Other imports stand in functions: the stage's processes import this file, and shall start as the command's do.

JOBS = (1, 4, 16)
GROUP = 20  # rows; a file of the paper's counts has thousands of row groups, and this one has hundreds


def make_rows(count: int) -> Iterator[dict[str, str]]:
    from tokenization import text

    rng = random.Random(1)
    for i in range(count):
        solution = f"<think> {text(rng, max(50, int(rng.lognormvariate(0, 0.8) * 4000)))} </think> \\boxed{{1}}"
        problem = {"problem": f"{i} {text(rng, 60)}", "expected_answer": "1", "pass_rate_72b_tir": "0.5"}
        yield problem | {"generated_solution": solution}


def write_parquet(path: Path, rows: list[dict[str, str]], times: int, group: int) -> Path:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.concat_tables([pyarrow.Table.from_pylist(rows)] * times)
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path


def read(data: Path, out: Path, workers: int, job: int = 0, jobs: int = 1) -> None:
    from nemo_openmath.core.progress import Progress
    from nemo_openmath.core.stage import StageContext
    from nemo_openmath.data.rows.stages import ReadConfig, ReadRows

    context = StageContext(
        name="read",
        inputs={"data": [data]},
        output=out,
        seed=0,
        services=None,  # type: ignore[arg-type]  # reading asks for none
        progress=Progress("read"),
        shard=job,
        shards=jobs,
    )
    asyncio.run(ReadRows(ReadConfig(mode="cot", workers=workers)).run(context))


def cpu_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def as_array(data: Path, folder: Path, count: int) -> None:
    size = data.stat().st_size
    for jobs in JOBS:
        seconds, sizes = [], []
        for job in range(jobs):
            before, cpu = bytes_read(), time.process_time()
            read(data, folder / f"{data.suffix}-array-{jobs}", 1, job, jobs)
            seconds.append(time.process_time() - cpu)
            sizes.append(bytes_read() - before)
        print(
            f"{data.name}, array of {jobs}: {count / max(seconds):,.0f} rows a CPU second of the slowest job, "
            f"{sum(seconds):.2f} CPU seconds in all; a job reads {min(sizes) / size:.3f} to {max(sizes) / size:.3f} "
            f"of the bytes, all read {sum(sizes) / size:.2f}",
            flush=True,
        )


def by_processes(data: Path, folder: Path, count: int, repeat: int) -> None:
    for turn in range(repeat):
        for workers in sorted({1, 2, len(os.sched_getaffinity(0))}):
            start, own, cpu = time.perf_counter(), time.process_time(), cpu_seconds()
            read(data, folder / f"{data.suffix}-{turn}-{workers}", workers)
            wall, own, cpu = time.perf_counter() - start, time.process_time() - own, cpu_seconds() - cpu
            print(
                f"{data.name}, {workers} processes: {count / wall:,.0f} rows/s; of CPU time a row "
                f"{cpu / count * 1e6:.0f} us, {own / count * 1e6:.0f} of them in the first process (start-up included)",
                flush=True,
            )


def peak_of(path: Path) -> float:
    """Return the peak memory, in MB, of a process that reads the batches of a Parquet file."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (path,))


def _peak(path: Path) -> float:
    from nemo_openmath.core.records.readers import raw_batches

    for _ in raw_batches(path, 256):
        pass
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = list(make_rows(options.rows))
        lines = folder / "rows.jsonl"
        lines.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        parquet = write_parquet(folder / "rows.parquet", rows, 1, GROUP)
        print(
            f"{options.rows} rows, {lines.stat().st_size / 1e6:.0f} MB; Parquet {parquet.stat().st_size / 1e6:.0f} MB"
        )
        for data in (lines, parquet):
            read(data, folder / f"{data.suffix}-first", 1)  # what is imported late, and the page cache
            as_array(data, folder, options.rows)
            by_processes(data, folder, options.rows, options.repeat)
        for times in (1, 4):
            path = write_parquet(folder / f"{times}.parquet", rows, times, options.rows * times)
            size = path.stat().st_size / 1e6
            print(f"Parquet, {options.rows * times} rows in one row group, {size:.0f} MB: peak {peak_of(path):.0f} MB")


if __name__ == "__main__":
    main()

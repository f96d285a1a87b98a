"""Time and memory of the browser of solutions: python benchmarks/viewer.py [SOLUTIONS], by default a million.

Solutions are made for it, twenty of each problem. It prints the CPU time and the memory of the index, and of some pages
the CPU time and the wall time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nemo_openmath.evaluation.viewer.building import build_index
from nemo_openmath.evaluation.viewer.filters import RowFilter
from nemo_openmath.evaluation.viewer.pages import Pages
from nemo_openmath.evaluation.viewer.sources import find_sources
from tests.support.solutions import write_many


def main(solutions: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_many(Path(folder), solutions, solutions // 20)
        began = time.process_time()
        index = build_index(find_sources([Path(folder)]))
        seconds = time.process_time() - began
        print(f"index of {solutions:,}: {seconds:.1f} s of CPU, {index.nbytes() / solutions:.0f} bytes a solution")
        pages = Pages(index, "many")
        filters = (
            RowFilter(),
            RowFilter(verdict="equal"),
            RowFilter(text="number 7"),
            RowFilter(least=9000, order="longest"),
        )
        for rows in filters:
            for page in (1, 50):
                cpu, wall = time.process_time(), time.perf_counter()
                pages.solutions(rows, page)
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                print(f"{rows.address() or 'all'}, page {page}: {1e3 * cpu:.0f} ms of CPU, {1e3 * wall:.0f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)

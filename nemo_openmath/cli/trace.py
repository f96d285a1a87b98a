"""``openmath trace``: where a record of a run comes from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, verb


def add(groups: Any) -> None:
    trace = verb(
        groups,
        "trace",
        "follow a record back to its thread: every stage that changed it, prompts, models, votes, drops",
        _trace,
        interrupted=AGAIN,
    )
    trace.add_argument("run", type=Path, metavar="RUN", help="folder of a run, finished or not")
    trace.add_argument(
        "id", metavar="ID", help="id of a record, or its beginning; PACKS:PACK:SAMPLE for a sample of a stage's packs"
    )
    trace.add_argument("--folder", metavar="STAGE", help="where to look for the id; without: in all stages")
    trace.add_argument("--full", action="store_true", help="all texts of all records on the way, whole")
    trace.add_argument("--json", action="store_true", help="all that is known, as one JSON document without the texts")


def _trace(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.command import print_trace

    register_all()
    print_trace(options.run, options.id, options.folder, full=options.full, as_json=options.json)

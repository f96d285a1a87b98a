"""``openmath doctor``: what is wrong with this machine, or with the nodes of a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, verb


def add(groups: Any) -> None:
    doctor = verb(
        groups,
        "doctor",
        "look at this machine, or at the nodes of a cluster: green, yellow, red, with remedies",
        _doctor,
        interrupted=AGAIN,
    )
    doctor.epilog = f"{doctor.epilog}exit code 2 where something is red"
    doctor.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="folder of a run, there or not yet")
    doctor.add_argument("--json", action="store_true", help="print a JSON object")


def _doctor(options: argparse.Namespace) -> None:
    import orjson
    from rich.console import Console

    from nemo_openmath.core.errors import UserError
    from nemo_openmath.launch.doctor import Colour, check_machine, report_lines
    from nemo_openmath.launch.doctor.system import System

    report = check_machine(System(options.output))
    if options.json:
        print(orjson.dumps(report.to_json(), option=orjson.OPT_INDENT_2).decode())
    else:
        console = Console(highlight=False)
        for line in report_lines(report):
            console.print(line, soft_wrap=True)
    if number := report.count(Colour.RED):
        raise UserError(f"{number} of {len(report.findings)} findings are red", remedy="do what stands behind ->")

"""``openmath doctor``: what is wrong with this machine, or with the nodes of a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, at_least, verb

NODES, WAIT_S = 2, 900


def add(groups: Any) -> None:
    doctor = verb(
        groups,
        "doctor",
        "look at this machine, or at the nodes of a cluster: green, yellow, red, with remedies",
        _doctor,
        interrupted=AGAIN,
    )
    doctor.epilog = f"{doctor.epilog}exit code 2 where something is red"
    doctor.add_argument("--output", type=Path, metavar="DIR", help="folder of a run, there or not yet; default: here")
    doctor.add_argument("--json", action="store_true", help="print a JSON object")
    doctor.add_argument("--cluster", type=Path, metavar="FILE", help="look at nodes of each partition that it names")
    doctor.add_argument("--partition", metavar="NAME", help="with --cluster: this one alone")
    doctor.add_argument(
        "--nodes", type=at_least(1), metavar="N", help=f"with --cluster: of each partition; default {NODES}"
    )
    doctor.add_argument(
        "--wait", type=at_least(1), metavar="SECONDS", help=f"with --cluster: for all of its jobs; default {WAIT_S}"
    )
    doctor.add_argument("--write", type=Path, metavar="DIR", help="in a job: write the report to DIR/NODE.json")


def _doctor(options: argparse.Namespace) -> None:
    from rich.console import Console

    from nemo_openmath.core.errors import UserError
    from nemo_openmath.launch.doctor import Colour, check_machine, report_lines
    from nemo_openmath.launch.doctor.nodes import write_report
    from nemo_openmath.launch.doctor.system import System

    if options.cluster is not None:
        _look_at_nodes(options)
        return
    for name in ("partition", "nodes", "wait"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} is of a cluster", remedy="add --cluster FILE")
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise UserError("--output is a file", file=options.output, remedy="name a folder, there or not yet")
    system = System(options.output or Path())
    if options.write is not None:
        write_report(options.write, system)
        return
    report = check_machine(system)
    if options.json:
        _print_json(report.to_json())
    else:
        console = Console(highlight=False)
        for line in report_lines(report):
            console.print(line, soft_wrap=True)
    if number := report.count(Colour.RED):
        raise UserError(f"{number} of {len(report.findings)} findings are red", remedy="do what stands behind ->")


def _look_at_nodes(options: argparse.Namespace) -> None:
    from rich.console import Console

    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.core.errors import ExitCode, UserError
    from nemo_openmath.launch import load_cluster
    from nemo_openmath.launch.doctor.nodes import visit_nodes, visits_json
    from nemo_openmath.launch.doctor.show import node_lines

    if options.output is None:
        raise UserError("--output is missing", remedy="name a folder on the file system that all nodes see")
    register_all()
    cluster = load_cluster(options.cluster, None)
    visits = visit_nodes(
        cluster,
        options.cluster,
        options.output,
        partition=options.partition,
        nodes=options.nodes or NODES,
        wait_s=options.wait or WAIT_S,
    )
    if options.json:
        _print_json(visits_json(visits))
    else:
        console = Console(highlight=False)
        for line in node_lines(visits):
            console.print(line, soft_wrap=True)
    if any(visit.exit_code is not ExitCode.OK for visit in visits):
        raise UserError("something is red, or nodes are missing", remedy="do what stands behind ->")


def _print_json(value: Any) -> None:
    import orjson

    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())

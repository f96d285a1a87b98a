"""``openmath recipe run|show|status|report|stages|reference``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, REPLACE, overrides, shard_of, verb
from nemo_openmath.cli.streams import run_async


def add(groups: Any) -> None:
    parser = groups.add_parser("recipe", help="run a recipe file, or look at one", description=__doc__)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    run = verb(verbs, "run", "run what is missing or changed; run again to go on", _run)
    _file(run)
    run.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the run")
    run.add_argument("--until", metavar="STAGE", help="stop after this stage")
    run.add_argument(
        "--from", dest="start", metavar="STAGE", help="begin with this stage; earlier ones must be finished"
    )

    run.add_argument("--only", metavar="STAGE", help="this stage alone")
    run.add_argument("--shard", metavar="I/N", default="0/1", help="with --only: job I (from 0) of an array of N")
    run.add_argument(
        "--prepare", action="store_true", help="with --only: write the job file of a training, run nothing"
    )
    run.add_argument(
        "--servers", type=Path, metavar="FILE", help="JSON: where models are served, whatever the recipe says of it"
    )
    run.add_argument("--replace", action="store_true", help=REPLACE)

    show = verb(
        verbs,
        "show",
        "print every setting with its value and origin (default, file:line, override)",
        _show,
        interrupted=AGAIN,
    )
    _file(show)

    status = verb(verbs, "status", "stages of a run: state, counts, time, drops by reason", _status, interrupted=AGAIN)
    status.add_argument("output", type=Path, metavar="DIR", help="folder of the run")

    report = verb(verbs, "report", "write report.json and report.html of a run again", _report, interrupted=AGAIN)
    report.add_argument("output", type=Path, metavar="DIR", help="folder of the run")

    stages = verb(
        verbs, "stages", "the kinds of stages a recipe can use, or all about one of them", _stages, interrupted=AGAIN
    )
    stages.add_argument("kind", nargs="?", metavar="KIND", help="its inputs, what it makes, and every setting")

    reference = verb(
        verbs, "reference", "write the same of all kinds, and of other files, as Markdown pages", _reference
    )
    reference.add_argument("folder", type=Path, metavar="DIR", help="stages.md, recipe-file.md, cluster-file.md, ...")


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    overrides(parser, "stages.train1.training.lr=1e-4")


def _run(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.command import run_recipe
    from nemo_openmath.recipe.selection import StageSelection

    register_all()
    shard, shards = shard_of(options.shard)
    selection = StageSelection(
        options.start, options.until, options.only, shard, shards, options.prepare, options.replace
    )
    run_async(run_recipe(options.recipe, options.overrides, options.output, selection, options.servers))


def _show(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.command import show_recipe

    register_all()
    show_recipe(options.recipe, options.overrides)


def _status(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.command import show_status

    register_all()
    show_status(options.output)


def _report(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.command import write_report

    register_all()
    write_report(options.output)


def _stages(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.command import show_stages
    from nemo_openmath.recipe.reference import describe

    register_all()
    if options.kind is not None:
        print(describe(options.kind))
        return
    show_stages()


def _reference(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.command import print_reference

    register_all()
    print_reference(options.folder)

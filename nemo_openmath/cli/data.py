"""``openmath data``: look at token files and packs, check them; the prompt that rows were written with; export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, NOTHING_KEPT, at_least, verb
from nemo_openmath.core.errors import UserError, refuse_special


def add(groups: Any) -> None:
    data = groups.add_parser("data", help="look at training data, check it", description="Training data.")
    verbs = data.add_subparsers(title="verbs", metavar="VERB", required=True)
    stats = verb(
        verbs,
        "stats",
        "lengths by subset, fill, share of targets, cost balance; one pack token by token",
        _stats,
        interrupted=AGAIN,
    )
    stats.add_argument("packs", type=Path, metavar="DIR", help="folder of a sft.pack stage")
    stats.add_argument("--tokenizer", type=Path, metavar="MODEL", help="also show a pack, with this model's tokenizer")
    stats.add_argument("--pack", type=at_least(0), metavar="N", help="which pack is shown (from 0), with --tokenizer")
    stats.add_argument(
        "--batch-samples", type=at_least(1), default=1024, metavar="N", help="of a step, for the balance"
    )
    stats.add_argument("--ranks", type=at_least(1), nargs="+", default=[8, 64], metavar="N", help="data-parallel sizes")

    verify = verb(
        verbs,
        "verify",
        "read every byte of packs or token files and check it against its checksum",
        _verify,
        interrupted=AGAIN,
    )
    verify.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="of a sft.pack or sft.tokenize stage")

    prompt = verb(
        verbs,
        "prompt",
        "recover the prompt that rows were written with, as a template file",
        _prompt,
        interrupted=AGAIN,
    )
    prompt.add_argument("rows", metavar="ROWS", help="file, folder, folder of a stage, or dataset of the Hub")
    prompt.add_argument("--mode", choices=("cot", "tir", "genselect"), help="whose prompt, where rows are of several")
    prompt.add_argument("--split", metavar="NAME", help="of a dataset, or of files that are named after splits")
    prompt.add_argument("--output", type=Path, metavar="FILE", help="the template file; without it, it is printed")

    export = verb(
        verbs,
        "export",
        "write problems or solutions as a dataset: Parquet with the published columns, and its card",
        _export,
        interrupted=NOTHING_KEPT,
    )
    export.add_argument("folder", type=Path, metavar="DIR", help="folder of a stage with problems or solutions")
    export.add_argument("output", type=Path, metavar="OUT", help="a new folder: README.md and data/train-*.parquet")
    export.add_argument("--name", help="the dataset's name on its card; the name of OUT by default")
    export.add_argument(
        "--licence",
        metavar="ID",
        help="the hub's identifier of its licence, such as cc-by-4.0; without: none is stated",
    )
    export.add_argument("--language", nargs="+", default=[], metavar="CODE", help="languages of its texts, such as en")


def _stats(options: argparse.Namespace) -> None:
    from rich.console import Console

    from nemo_openmath.chat import ChatTokenizer
    from nemo_openmath.data.packs.plan import PackPlan
    from nemo_openmath.data.stats import measure, show_pack, show_stats

    if options.pack is not None and options.tokenizer is None:
        raise UserError("--pack shows a pack's text", remedy="add --tokenizer MODEL, or leave out --pack")
    console = Console(width=None if Console().is_terminal else 120)
    plan = PackPlan(options.packs)
    console.print(show_stats(measure(plan, batch_samples=options.batch_samples, ranks=options.ranks)))
    if options.tokenizer is not None:
        tokenizer = ChatTokenizer.load(options.tokenizer, chat=False)
        for tokens in plan.samples.folders:
            tokens.require(tokenizer.fingerprint)
        shown = show_pack(plan.pack(options.pack or 0), tokenizer, marks=console.color_system is None)
        console.print(shown, soft_wrap=True, highlight=False)


def _verify(options: argparse.Namespace) -> None:
    from nemo_openmath.data.verify import verify

    for folder in options.folders:
        for line in verify(folder):
            print(line)


def _export(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.dataset_card import CardSettings
    from nemo_openmath.recipe.dataset_export import export_dataset

    register_all()
    settings = CardSettings(options.name or options.output.resolve().name, options.licence, tuple(options.language))
    written = export_dataset(options.folder, options.output, settings)
    print(f"{options.output}: {written.rows:,} rows in {len(written.files)} file(s) of data/, and README.md")


def _prompt(options: argparse.Namespace) -> None:
    import sys

    from nemo_openmath.data.rows.questions import prompts_of, questions

    if options.output is not None:
        refuse_special(options.output, "give the name of a file")
        if options.output.exists():
            raise UserError("is there already", file=options.output, remedy="give another --output, or remove it")
    prompts = prompts_of(
        lambda counts: questions(options.rows, counts, mode=options.mode, split=options.split),
        options.mode,
        options.rows,
    )
    recovery, total = prompts.recovery, sum(prompts.reproduced) + prompts.others
    if not recovery.prompts:
        reasons = "; ".join(reason for reason, _ in (recovery.doubts or recovery.reasons).most_common(2))
        why = reasons or "one row alone tells no prompt" if recovery.rows == 1 else reasons or "no two are alike"
        remedy = (
            "give more rows, of other problems or of one prompt, or rows of input and output with a column problem; or "
            "write the template yourself"
            if recovery.doubts
            else "give rows with prompts"
        )
        raise UserError(f"no prompt is common to its rows: {why}", file=options.rows, remedy=remedy)
    for number, (prompt, count) in enumerate(zip(recovery.prompts, prompts.reproduced, strict=True), 1):
        path = options.output
        if path is not None:
            path = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
            refuse_special(path, "give the name of a file")
            path.write_bytes(prompt.template.to_text().encode())
        elif number == 1:
            sys.stdout.write(prompt.template.to_text())
        place = "" if path is None else f"{path}: "
        note = f"{place}prompt {prompt.template.digest} reproduces {count:,} of {total:,} rows"
        print(note, file=sys.stderr if options.output is None else sys.stdout)
    if prompts.others:
        print(f"{prompts.others:,} rows are of no prompt, such as {', '.join(prompts.examples)}", file=sys.stderr)
    for doubt, count in recovery.doubts.most_common():
        print(f"{count:,} of {recovery.rows:,} rows that were looked at: {doubt}", file=sys.stderr)
    for reason, count in prompts.unusable.most_common():
        print(f"{count:,} rows were not looked at: {reason}", file=sys.stderr)

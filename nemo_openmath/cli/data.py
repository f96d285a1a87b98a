"""``openmath data``: look at token files and packs, check them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import AGAIN, at_least, verb
from nemo_openmath.core.errors import UserError


def add(groups: Any) -> None:
    data = groups.add_parser("data", help="look at packed data, check it", description="Packed training data.")
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

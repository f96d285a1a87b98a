"""``openmath generate``: solutions of a file of problems."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from nemo_openmath.cli.common import REPLACE, overrides, shard_of, verb
from nemo_openmath.cli.streams import run_async

GENERATE_EXAMPLE = """\
problems: ./problems.jsonl   # JSON Lines, JSON, CSV or Parquet: `problem`, and where known `expected_answer`
engine: {kind: embedded, model: ./my-model}   # a Hugging Face folder; or a server:
# engine: {kind: http, urls: [http://127.0.0.1:8000/v1], model: my-model, tokenizer: ./my-model}
generate: {mode: cot, samples: 4, temperature: 0.6, top_p: 0.95, max_tokens: 32768}
seed: 1
"""
_GENERATE = f"a CONFIG.yaml (paths are relative to it):\n\n{textwrap.indent(GENERATE_EXAMPLE, '  ')}\n" + (
    "every setting of `generate`: openmath recipe stages rollout.generate; commented: examples/generate.yaml"
)


def add(groups: Any) -> None:
    generate = verb(groups, "generate", "sample solutions of a file of problems; run again to go on", _generate)
    generate.epilog = f"{generate.epilog}\n\n{_GENERATE}"
    generate.add_argument("job", type=Path, metavar="CONFIG.yaml", help="problems, engine, generate: see below")
    overrides(generate, "generate.samples=8")
    generate.add_argument("--output", type=Path, required=True, metavar="DIR", help="solutions/ in it holds the result")
    generate.add_argument("--shard", metavar="I/N", default="0/1", help="job I (from 0) of an array of N")
    prepare = "before an array of jobs: read the problems, keep what there is of fewer samples"
    generate.add_argument("--prepare", action="store_true", help=prepare)
    generate.add_argument("--replace", action="store_true", help=REPLACE)


def _generate(options: argparse.Namespace) -> None:
    from nemo_openmath.cli.registry import register_all
    from nemo_openmath.recipe.generate import generate
    from nemo_openmath.recipe.selection import StageSelection

    register_all()
    shard, shards = shard_of(options.shard)
    asked = StageSelection(shard=shard, shards=shards, prepare=options.prepare, replace=options.replace)
    run_async(generate(options.job, options.overrides, options.output, asked))

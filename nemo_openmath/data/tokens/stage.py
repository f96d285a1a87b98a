"""The stage ``sft.tokenize``."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.stage import RUNTIME, Stage, StageContext
from nemo_openmath.data.tokens.tokenization import write_tokens


@dataclass(frozen=True)
class TokenizeConfig:
    """Settings of ``sft.tokenize``."""

    train_on_tool_output: bool = False
    """The loss also counts what the sandbox wrote; otherwise only what the model wrote."""
    workers: PositiveInt | None = field(default=None, metadata=RUNTIME)
    """Processes that tokenize; null: one a core."""


class Tokenize(Stage[TokenizeConfig]):
    """SFT rows -> token files, one folder per input: ``tokens-0``, ``tokens-1``, ..."""

    kind = "sft.tokenize"
    Config = TokenizeConfig
    ports = {"rows": "SFT rows", "model": "the model whose tokenizer is used"}
    takes = {"rows": "SftRow", "model": "model"}
    encodes = ("rows", "model")
    makes = "tokens"
    version = 3  # one <think> at the beginning, one end of text; control tokens in texts are text

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        for model in inputs.get("model", ()):
            ChatTokenizer.load(model)

    async def run(self, context: StageContext) -> None:
        context.progress.begin(len(context.paths("rows")))
        samples = tokens = target_tokens = 0
        dropped: Counter[str] = Counter()
        for number, rows in enumerate(context.paths("rows")):
            folder = await asyncio.to_thread(
                write_tokens,
                rows,
                context.only("model"),
                context.output / f"tokens-{number}",
                train_on_tool_output=self.config.train_on_tool_output,
                workers=self.config.workers,
            )
            samples += len(folder)
            tokens += folder.num_tokens
            target_tokens += folder.num_target_tokens
            dropped.update(folder.dropped)
            context.progress.advance()
        context.metrics.update(samples=samples, tokens=tokens, trained_tokens=target_tokens, dropped=dict(dropped))

"""The settings of an engine, and the open engine that they mean."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from nemo_openmath.core.engine import Engine
from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.http.dialects import ServerKind
from nemo_openmath.models.drafter_shape import refuse_drafter

NGRAM, NONE = "ngram", "none"
DRAFTER_NAMES = (NGRAM, NONE)
"""Values of ``EngineConfig.drafter`` that are no folders."""
IGNORED_EFFORT = (
    "reasoning_effort would be ignored where prompts are rendered here; use api: chat, or template_options where the "
    "model's chat template reads the effort"
)


@dataclass(frozen=True)
class EngineConfig:
    """Which engine generates, and how it is reached."""

    kind: Literal["embedded", "http", "replay"] = "embedded"
    """``embedded`` loads the model into this process, ``http`` asks servers, ``replay`` gives recorded answers."""
    model: str = ""
    """Hugging Face folder (``embedded``), name of the model on the servers (``http``), or recording (``replay``)."""
    slots: PositiveInt | None = None
    """Embedded engine: requests decoded at once, at most; null means 64, or fewer where memory is short."""
    max_context: PositiveInt | None = None
    """Embedded engine: tokens of prompt and completion, at most; null means the model's, or what fits."""
    cache_mib: PositiveInt | None = None
    """Embedded engine: MiB of memory for keys and values, for which requests wait where it is full; null means what is
    free."""
    threads: PositiveInt | None = None
    """Embedded engine: threads of each operation; null means torch's number."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Embedded engine: type of the weights and of the computation."""
    device: str = "cpu"
    """Embedded engine: ``cpu``, ``cuda`` or ``cuda:N``."""
    prefix_cache_mib: NonNegativeInt = 1024
    """Embedded engine: MiB of memory, at most, for prefixes of requests that run no more."""
    drafter: str | None = None
    """Embedded engine: what guesses tokens that the model then verifies, several in one pass: ``ngram`` (what stood in
    the text before), the folder of a trained drafter, or ``none``; null is ``ngram`` for models of
    32 MiB and more. Results are the same with each."""
    urls: tuple[str, ...] = ()
    """Servers: base URLs, as ``http://host:port``."""
    urls_file: Path | None = None
    """Servers: file with one base URL a line, instead of ``urls``; it is read again when it changes."""
    server: ServerKind = "auto"
    """Servers: what they are; ``auto`` asks them."""
    api: Literal["completions", "chat"] = "completions"
    """Servers: ``completions`` for prompts in token ids, ``chat`` for conversations that the server renders."""
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    """Servers with ``api: chat``: how long the model is to reason, as gpt-oss and other models take it; null leaves it
    to the server."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Options of the chat template, such as ``{enable_thinking: false}`` of Qwen3. With ``api: chat`` they are sent
    (``chat_template_kwargs`` of vLLM and SGLang); else prompts are rendered with them here."""
    tokenizer: Path | None = None
    """Servers: folder of the model's tokenizer, with which stop strings are cut; ``trtllm`` needs it."""
    attempts: PositiveInt = 5
    """Servers: failures after which a request is given up."""
    patience_s: NonNegativeFloat = 600.0
    """Servers: seconds for which they may be busy or away."""
    timeout_s: PositiveFloat = 3600.0
    """Servers: seconds of one attempt."""
    api_key_env: str | None = None
    """Servers: environment variable that holds the bearer token."""

    def __post_init__(self) -> None:
        if self.reasoning_effort is not None and (self.kind != "http" or self.api != "chat"):
            raise ValueError(IGNORED_EFFORT)

    @property
    def renders(self) -> bool:
        """Whether prompts are rendered here, and not by a chat server."""
        return self.kind != "http" or self.api != "chat"


def check_drafter(drafter: str | Path | None, model: Path | None) -> None:
    """Raise UserError where ``drafter`` cannot guess tokens for ``model``, as far as their config.json files say.

    Without a model, which may still be to be made, it is only asked whether ``drafter`` names a drafter at all.
    """
    if drafter is None or drafter in DRAFTER_NAMES:
        return
    if not Path(drafter).is_dir():
        raise UserError(f"drafter {drafter!s} is no folder", remedy=f"use {NGRAM}, {NONE}, or the folder of a drafter")
    refuse_drafter(Path(drafter), model)


async def open_engine(config: EngineConfig) -> Engine:
    """Open the engine and make sure that it answers. Its capabilities are known when this returns.

    Raises UserError where the model or a setting is wrong, and EngineError where no server answers in time.
    """
    if not config.model:
        raise UserError("the engine's model is not set", remedy="set `model`")
    if config.kind == "embedded":
        import asyncio

        from nemo_openmath.inference.embedded import EmbeddedEngine

        return await asyncio.to_thread(
            EmbeddedEngine.load,
            config.model,
            slots=config.slots,
            max_context=config.max_context,
            cache_mib=config.cache_mib,
            threads=config.threads,
            dtype=config.dtype,
            device=config.device,
            prefix_cache_bytes=config.prefix_cache_mib << 20,
            drafter=config.drafter,
        )
    if config.kind == "replay":
        from nemo_openmath.inference.replay import ReplayEngine

        return ReplayEngine(config.model)
    return await _open_http(config)


async def _open_http(config: EngineConfig) -> Engine:
    from nemo_openmath.inference.http.client import HTTPEngine
    from nemo_openmath.inference.http.retrying import RetryPolicy

    if bool(config.urls) == (config.urls_file is not None):
        raise UserError("an http engine needs `urls` or `urls_file`, and not both", remedy="name the servers once")
    tokenizer = None if config.tokenizer is None else ChatTokenizer.load(config.tokenizer, chat=False)
    engine = HTTPEngine(
        config.urls_file or config.urls,
        config.model,
        tokenizer=tokenizer,
        api=config.api,
        kind=config.server,
        reasoning_effort=config.reasoning_effort,
        template_options={} if config.renders else config.template_options,
        retry=RetryPolicy(attempts=config.attempts, patience_s=config.patience_s),
        api_key_env=config.api_key_env,
        timeout_s=config.timeout_s,
    )
    try:
        await engine.probe()
    except BaseException:
        await engine.close()
        raise
    return engine

"""From a configuration to an open engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.bounds import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from nemo_openmath.core.engine import Engine
from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.http.dialects import ServerKind


@dataclass(frozen=True)
class EngineConfig:
    """Which engine generates. ``embedded`` loads ``model`` (a Hugging Face directory) into this process; ``http`` asks
    for ``model`` at ``urls`` (or at the servers listed in ``urls_file``); ``replay`` serves the recording ``model``."""

    kind: Literal["embedded", "http", "replay"] = "embedded"
    model: str = ""
    # embedded
    # what is null is chosen from the memory that is free
    slots: PositiveInt | None = None  # requests decoded at once; null: 64, or fewer
    max_context: PositiveInt | None = None  # tokens of prompt + completion; null: the model's, or fewer
    cache_mib: PositiveInt | None = None  # memory for keys and values; requests wait where it is full
    threads: PositiveInt | None = None  # of each operation; default: torch's
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"
    prefix_cache_mib: NonNegativeInt = 1024
    # http
    urls: tuple[str, ...] = ()
    urls_file: Path | None = None
    server: ServerKind = "auto"
    api: Literal["completions", "chat"] = "completions"
    tokenizer: Path | None = None  # directory; needed for trtllm
    attempts: PositiveInt = 5
    patience_s: NonNegativeFloat = 600.0  # for servers that are busy or away
    timeout_s: PositiveFloat = 3600.0  # of one attempt
    api_key_env: str | None = None


async def open_engine(config: EngineConfig) -> Engine:
    """Open the engine and make sure that it answers: its capabilities are known when this returns."""
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

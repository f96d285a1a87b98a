"""The settings of the teacher, and the program that plays it where a recipe names no server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from nemo_openmath.core.bounds import NonNegativeFloat, PositiveFloat, PositiveInt
from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.http.dialects import ServerKind
from nemo_openmath.inference.open import IGNORED_EFFORT


@dataclass(frozen=True)
class StandIn:
    """A program that plays a teacher, served over the OpenAI-compatible protocol on loopback."""

    settings: type
    """The dataclass of its settings, every one with a default: what ``teacher.stand_in`` of a recipe fills."""
    command: Callable[[Any, Path], list[str]]
    """(settings, folder of the tokenizer) -> the command. Its first line on standard output is JSON with ``url``."""
    disclosure: str
    """What the results say of it: that no language model wrote these texts."""


def rendering_digest(reasoning_effort: str | None, template_options: Mapping[str, Any]) -> str:
    """Return what of these settings makes a difference to the texts of a model; empty where they are not set."""
    given = {"reasoning_effort": reasoning_effort, "template_options": dict(template_options)}
    given = {name: value for name, value in given.items() if value}
    return f" {orjson.dumps(given, option=orjson.OPT_SORT_KEYS).decode()}" if given else ""


_registered: list[StandIn] = []


def register_stand_in(program: StandIn) -> None:
    """Make ``program`` the one that plays the teacher of recipes that name no server. A second one is refused."""
    if _registered and _registered[0] is not program:
        raise ValueError("there is a stand-in for the teacher already")
    _registered[:] = [program]


class StandInSettings:
    """The type of ``Teacher.stand_in``. It stands for the settings class of the registered program."""


def settings_types() -> dict[type, type]:
    """Return what :class:`StandInSettings` stands for; nothing where no program is registered."""
    return {StandInSettings: _registered[0].settings} if _registered else {}


def _default_settings() -> Any:
    return _registered[0].settings() if _registered else None


@dataclass(frozen=True)
class Teacher:
    """The model that reads the forum, solves, judges and summarises: any OpenAI-compatible server, or a program that
    plays one."""

    kind: Literal["server", "stand_in"] | None = None
    """A server, or the program that plays a teacher in the demo's world. ``null`` is a server where ``url``, ``urls``
    or ``urls_file`` is given, and the program where none of them is."""
    url: str | None = None
    """Address of the server, such as ``http://host:8000/v1``."""
    urls: tuple[str, ...] = ()
    """Addresses of several servers of the same model; requests are spread over them."""
    urls_file: Path | None = None
    """A file with one address a line. It is read again when it changes, so that servers can come and go."""
    server: ServerKind = "auto"
    """What kind of server it is. ``auto`` asks the server."""
    model: str = "stand-in-teacher"
    """The name under which the server knows the model."""
    tokenizer: str | None = None
    """Folder of the model's tokenizer."""
    api: Literal["completions", "chat"] = "completions"
    """``completions`` sends token ids, ``chat`` sends messages and leaves the template to the server."""
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    """How long the model is to reason, as gpt-oss and other models take it; for ``api: chat``. ``null`` leaves it to
    the server."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Options of the chat template, such as ``{enable_thinking: false}`` of Qwen3. With ``api: chat`` they are sent
    (``chat_template_kwargs`` of vLLM and SGLang); else prompts are rendered with them here."""
    api_key_env: str | None = None
    """The environment variable that holds the server's key."""
    attempts: PositiveInt = 5
    """How often a request that fails is made."""
    timeout_s: PositiveFloat = 3600.0
    """Time limit of one attempt, in seconds."""
    patience_s: NonNegativeFloat = 600.0
    """How long a server that is busy or away is waited for, in seconds."""
    stand_in: StandInSettings = field(default_factory=_default_settings)
    """Settings of the stand-in: how often it errs, by task."""

    def __post_init__(self) -> None:
        servers = sum((self.url is not None, bool(self.urls), self.urls_file is not None))
        if servers > 1:
            raise UserError("url, urls and urls_file exclude each other", remedy="name the servers once")
        if self.kind == "server" and not servers:
            raise UserError("kind is server, and no server is named", remedy="give its url")
        if self.kind == "stand_in" and servers:
            raise UserError("kind is stand_in, and a server is named", remedy="remove one of the two")
        if self.reasoning_effort is not None and self.api != "chat":
            raise ValueError(IGNORED_EFFORT)

    @property
    def is_stand_in(self) -> bool:
        """Whether a program plays the teacher."""
        return self.url is None and not self.urls and self.urls_file is None

    @property
    def renders(self) -> bool:
        """Whether prompts are rendered here, and not by a chat server."""
        return self.api != "chat"

    @property
    def program(self) -> StandIn:
        """The program that plays the teacher. Raises UserError where none is registered."""
        if not _registered:
            raise UserError("teacher: no server is named, and no stand-in is installed", remedy="give the server's url")
        return _registered[0]

    def digest(self) -> str:
        """Return what of the teacher makes a difference to the texts that it writes.

        It is an input of every stage that asks the teacher.
        """
        if not self.is_stand_in:
            return f"{self.model} {self.api}" + rendering_digest(self.reasoning_effort, self.template_options)
        return orjson.dumps(self.stand_in).decode()

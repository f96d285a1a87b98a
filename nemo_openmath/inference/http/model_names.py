"""The model that is asked for, and the names that servers have for it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_openmath.core.engine import WrongServer
from nemo_openmath.inference.http.retrying import AttemptFailed

log = logging.getLogger(__name__)

# What names of one model differ by: a date, a revision, a pointer to the newest, a tariff.
_SUFFIX = re.compile(
    r"[-@:_.](?:latest|preview|free|exp|\d{4}-\d{2}-\d{2}|\d{2}-\d{2}|\d{3,8}|v\d+(?::\d+)?)\Z", re.IGNORECASE
)


class ModelNames:
    """The ``name`` of a model here, and the name ``asks_for`` that the servers know it by."""

    def __init__(self, name: str):
        self.name = self.asks_for = name
        self._aliases = {name}  # names under which a server may answer
        self._warned: set[str] = set()

    def choose_card(self, cards: Sequence[Mapping[str, Any]], urls: str) -> Mapping[str, Any]:
        """Return the model's card among those of ``/v1/models`` and ask for the model by the card's name from now on.

        Raises WrongServer, which lists what the servers at ``urls`` have, where none is the model's.
        """
        for means_the_same in (str.__eq__, same_model, alias_of):
            card = next((card for card in cards if means_the_same(str(card.get("id")), self.name)), None)
            if card is not None:
                break
        else:
            served = ", ".join(str(card.get("id")) for card in cards) or "nothing"
            raise WrongServer(f"{urls}: no server has the model {self.name!r}; it serves {served}; name one of these")
        self.asks_for = str(card["id"])
        self._aliases |= {str(card[key]) for key in ("id", "root") if card.get(key)}
        self._warn_of_alias(self.asks_for)
        return card

    def check(self, answer: Mapping[str, Any]) -> None:
        """Raise AttemptFailed where an answer names another model."""
        served = answer.get("model")
        if not served or any(same_model(str(served), name) for name in self._aliases):
            return
        if not any(alias_of(str(served), name) for name in self._aliases):
            raise AttemptFailed(f"the server answers as {served!r}, asked for {self.name!r}")
        self._warn_of_alias(str(served))

    def warn(self, message: str) -> None:
        """Log a warning once, however often it is the case."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning("%s", message)

    def _warn_of_alias(self, served: str) -> None:
        if not same_model(served, self.name):
            self.warn(f"the server calls {self.name!r} {served!r}; taken for the same model")


def same_model(served: str, asked: str) -> bool:
    """Tell whether two names mean one model: they are equal, or one is a path to, or lacks the owner of, the other."""
    if served == asked:
        return True
    loose = any("/" not in name or name.startswith(("/", ".", "~")) for name in (served, asked))
    return loose and served.rstrip("/").rsplit("/", 1)[-1] == asked.rstrip("/").rsplit("/", 1)[-1]


def alias_of(served: str, asked: str) -> bool:
    """Tell whether two names differ by a date, a revision or the like alone, or in upper and lower case."""
    return same_model(_bare(served), _bare(asked))


def _bare(name: str) -> str:
    name = name.lower().rstrip("/")
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name

"""The protocol of a model's tokenizer with its chat template: what is needed to ask the model something.

What a message holds is text through and through; control tokens of the chat template are ids. ``chat/tokenizer.py``
has the one implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

RENDERED = "rendered"
"""The role of a message that is a whole prompt, rendered before it came to us."""

Part = tuple[str, bool]
"""A text, and whether it is a control token that is to be text."""


@dataclass(frozen=True, slots=True)
class Message:
    """A turn before the assistant's. ``role`` is system, user or assistant; or, of a single message, ``RENDERED``."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt. ``opening`` is the ``<think>`` with its white space (or the whole empty thought) that the chat
    template itself writes at the end, and empty where it writes none."""

    parts: tuple[Part, ...]
    opening: str

    @property
    def text(self) -> str:
        """The prompt as one text."""
        return "".join(text for text, _ in self.parts)


class Tokenizer(Protocol):
    """Encodes prompts and decodes what a model generated."""

    @property
    def fingerprint(self) -> str:
        """Digest of tokenizer and template. Equal fingerprints mean that ids are exchangeable."""
        ...

    @property
    def options(self) -> str:
        """What the template renders with besides the turns, as JSON; empty where that is nothing."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids of the tokens that end a text."""
        ...

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """Return the prompt up to where the assistant's turn begins. Raises UserError where there is no template, or
        where it refuses the turns."""
        ...

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the text of the turns and, with ``add_generation_prompt``, of what opens the assistant's turn. Raises
        UserError where the template refuses them."""
        ...

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of :meth:`prompt`."""
        ...

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """Return the token ids of parts in a row."""
        ...

    def encode_text(self, text: str, *, tags: bool = False) -> list[int]:
        """Return the token ids of a text in which control tokens are text like the rest. ``tags``: those of our
        protocol (``<think>``, ``<tool_call>``) stay single ids."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""
        ...

    def strip_end(self, text: str) -> tuple[str, bool]:
        """Return the text without the end-of-text tokens that it ends in, and whether there was one."""
        ...

    def control_in(self, text: str) -> str | None:
        """Return the first control token that is spelled in a text, tags of our protocol aside."""
        ...

    def without_first(self, text: str) -> str:
        """Return the text without the first token that the tokenizer puts in front of every text by itself."""
        ...

    def as_sent(self, prompt: str) -> str | None:
        """Return the text of which a server with this tokenizer makes the ids of ``prompt``, though it puts tokens
        around every text by itself. None where there is no such text."""
        ...

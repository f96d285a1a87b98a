"""How a model calls code: one class for each ``tool_format``.

A format says where the engine stops, reads what the model wrote, and writes what the model is shown of the output. The
loop (``loop.py``; with chat servers ``talking.py``) does the rest. Whatever the format, the record is in tags:
:class:`Step` says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nemo_openmath.chat import Template, load_template
from nemo_openmath.chat.blocks import notice, notice_block, output_block
from nemo_openmath.chat.fences import read_fences, spells_a_tag
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.records import Mode
from nemo_openmath.core.tags import CODE_END, CODE_START
from nemo_openmath.inference.rollout.settings import RolloutSettings


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done with the text that the model wrote since the last output."""

    shown: str
    """The text as the model is shown it from now on: what was generated, up to where it is cut."""
    recorded: str
    """The same text as the record has it."""
    code: str | None = None
    """The program to run."""
    error: str = ""
    """What the model is shown instead of an output: it called code in a way that nothing runs."""
    invented: bool = False
    """The model began an output by itself: it was cut away."""
    finish: Finish | None = None
    """Why the solution ends here; None where the code runs and the model goes on."""


class ToolFormat(Protocol):
    """How a model calls code."""

    prompt: str
    """Name of the shipped prompt that asks for it."""
    stops: tuple[str, ...]
    """Strings at which the engine stops so that :meth:`read` can look: four at most, as vLLM and OpenAI take them."""
    keeps_ids: bool
    """The record holds the very ids that were generated."""

    def read(self, text: str, *, ended: bool, ran: Sequence[str], outputs: Sequence[str]) -> Step | None:
        """Return what is to be done with ``text``, all that the model wrote since the last output; None where it goes
        on. ``ended``: the model's turn is over. ``ran``, ``outputs``: the programs so far, and what they printed."""
        ...

    def output(self, output: str, remaining: int) -> str:
        """Return what the model is shown of a program's output. ``remaining``: executions that it has left."""
        ...


class Tags:
    """Code between ``<tool_call>`` and ``</tool_call>``: the protocol of the released models."""

    prompt = "tir"
    stops: tuple[str, ...] = (CODE_END,)
    keeps_ids = True

    def read(self, text: str, *, ended: bool, ran: Sequence[str], outputs: Sequence[str]) -> Step | None:
        """Read a text, which the tag ends."""
        if not text.endswith(CODE_END):
            return None
        start = text.rfind(CODE_START)
        if start < 0:
            return Step(text, text, error=f"SyntaxError: {CODE_END} without {CODE_START}")
        return Step(text, text, text[start + len(CODE_START) : -len(CODE_END)].strip("\n"))

    def output(self, output: str, remaining: int) -> str:
        """Return the output's block and the notice of the budget."""
        return output_block(output) + notice_block(remaining)


class Fences:
    """Code in fences of Markdown, as instruct models write it that do not know our tags. No notices: they are no
    manner of such models."""

    prompt = "tir-fences"
    stops: tuple[str, ...] = ("```\n", "```output", "~~~\n", CODE_START)  # what else ends code is read, later
    keeps_ids = False

    def read(self, text: str, *, ended: bool, ran: Sequence[str], outputs: Sequence[str]) -> Step | None:
        """Read a text: the first program that ends in it, or the first output that the model made up."""
        reading = read_fences(text, ended=ended, ran=ran, outputs=outputs)
        call, invented, tag = reading.call, reading.invented, spells_a_tag(text)
        end = call.end if call is not None else len(text) if invented is None else invented
        if 0 <= tag < end:  # in the record it could not be told from a call
            return Step(text[:tag], text[:tag], finish=Finish.CUT)
        if call is not None:
            closing = "" if invented is None else f"\n{call.fence}"
            prose = text[: call.start]
            newline = "" if not prose or prose.endswith("\n") else "\n"
            return Step(
                f"{text[:end].rstrip()}{closing}\n",
                f"{prose}{newline}{as_tags(call.code)}",
                call.code,
                invented=invented is not None,
            )
        if invented is not None:
            return Step(text[:invented], text[:invented], invented=True, finish=Finish.INVENTED)
        return None

    def output(self, output: str, remaining: int) -> str:
        """Return the output in a fence."""
        return output_block(output).lstrip("\n")


class ToolCalls:
    """Code in calls of the tool ``python``, which a chat server takes out of the text (``talking.py``)."""

    prompt = "tir-tools"
    stops: tuple[str, ...] = ()
    keeps_ids = False

    def read(self, text: str, *, ended: bool, ran: Sequence[str], outputs: Sequence[str]) -> Step | None:
        """Read nothing: no call stands in the text."""
        return None

    def output(self, output: str, remaining: int) -> str:
        """Return the output and the notice of the budget, as plain text."""
        return f"{output}\n{notice(remaining)}"


FORMATS: dict[str, ToolFormat] = {"tags": Tags(), "fences": Fences(), "tool_calls": ToolCalls()}
IDLE_STOPS = 64  # stops at which there was nothing to do; a model that writes fences for ever is stopped no more


def template_of(mode: Mode, settings: RolloutSettings, path: Path | None) -> Template:
    """Return the prompt that solutions of a mode are asked with: the shipped one, or the user's file."""
    return load_template(FORMATS[settings.tool_format].prompt if mode == Mode.TIR else mode, path)


def cut_output(output: str, chars: int) -> str:
    """Return at most ``chars`` characters of a program's output, with a visible note where it was cut."""
    return output if len(output) <= chars else output[:chars] + "... (output cut)\n"


def as_tags(code: str) -> str:
    """Return a program as a call by tags."""
    return f"{CODE_START}\n{code}\n{CODE_END}"

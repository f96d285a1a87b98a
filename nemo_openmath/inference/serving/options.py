"""Options of the embedded engine in ``openmath serve``, for the command and for the server that it starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Literal, NoReturn

from nemo_openmath.core.errors import UserError

ServedEngine = Literal["embedded", "vllm", "sglang", "trtllm"]
"""What ``openmath serve`` can start."""

DTYPE, DEVICE = "float32", "cpu"
NO_CHAT = "--no-chat"
_SIZES = ("slots", "max_context", "cache_mib", "threads")
EMBEDDED_OPTIONS = (*_SIZES, "dtype", "device", "drafter", "api_key_env", "no_chat")


def add_embedded_options(parser: argparse._ActionsContainer) -> None:
    """Add the options to ``parser``; those that are not given stay None."""
    add = parser.add_argument
    add("--slots", type=_positive, metavar="N", help="requests decoded at once; default: 64, or fewer")
    add(
        "--max-context",
        type=_positive,
        metavar="TOKENS",
        help="prompt + completion; default: the model's, or what fits",
    )
    add("--cache-mib", type=_positive, metavar="MIB", help="memory for keys and values; default: from what is free")
    add("--threads", type=_positive, metavar="N", help="of each operation; default: the processors")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help=f"default: {DTYPE}")
    add("--device", help=f"cpu, cuda or cuda:N; default: {DEVICE}")
    add("--drafter", metavar="DIR|ngram|none", help="what guesses tokens; the results are the same with each")
    add("--api-key-env", metavar="NAME", help="environment variable with the bearer token that requests must carry")
    add(NO_CHAT, action="store_true", default=None, help="serve a model without a chat template: /v1/completions alone")


def server_arguments(
    options: argparse.Namespace, behind: Sequence[str], unknown: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the arguments of the server itself.

    For the embedded engine they are its options in ``options`` and those ``behind`` the ``--`` of the command line; for
    another engine they are what is behind it, unchanged. ``unknown``: words in front of it that are no options of
    ``serve``. Raises UserError, with the right form, where the engine has no such option.
    """
    engine = options.engine
    form = f"{engine}'s own options go behind --: openmath serve {options.model} --engine {engine} --"
    if unknown:
        words = " ".join(unknown)
        remedy = "see openmath serve --help" if engine == "embedded" else f"{form} {words}"
        raise UserError(f"unrecognized arguments: {words}", remedy=remedy)
    if engine == "embedded":
        return tuple(_words(_parse(behind, options)))
    if options_given := _words(options):
        raise UserError(f"{options_given[0]} is an option of the embedded engine, not of {engine}", remedy=form)
    return tuple(behind)


def drafter_of(arguments: Sequence[str]) -> str | None:
    """Return the ``--drafter`` among the arguments of an embedded engine's server (:func:`server_arguments`)."""
    parser = _Parser(add_help=False, allow_abbrev=False, prog="")
    add_embedded_options(parser)
    drafter: str | None = parser.parse_args(list(arguments)).drafter
    return drafter


def _words(options: argparse.Namespace) -> list[str]:
    words: list[str] = []
    for name in EMBEDDED_OPTIONS:
        if (value := getattr(options, name)) is not None:
            words += [_written(name)] if value is True else [_written(name), str(value)]
    return words


def _parse(words: Sequence[str], options: argparse.Namespace) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False, prog="")
    add_embedded_options(parser)
    return parser.parse_args(list(words), argparse.Namespace(**{n: getattr(options, n) for n in EMBEDDED_OPTIONS}))


def _written(name: str) -> str:
    return "--" + name.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        known = ", ".join(map(_written, EMBEDDED_OPTIONS))
        raise UserError(f"behind --: {message}", remedy=f"the embedded engine knows {known}")


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is out of range; choose 1 or more")
    return number

"""The ``openmath`` command: verbs only, no logic. Each group of verbs is one file of this folder."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from nemo_openmath import __version__
from nemo_openmath.cli.common import EXAMPLES, EXIT_CODES, CommandParser, Help
from nemo_openmath.cli.streams import be_patient
from nemo_openmath.core.errors import ExitCode, OpenMathError, UserError, of_the_system, words_of
from nemo_openmath.core.home import prepare_home
from nemo_openmath.core.logs import configure_logging

# torch's threads are set by the code that uses it; libraries below it must not multiply them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


PASS_ON = ("serve",)  # verbs that pass on what stands behind --


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, and turn errors into one line and an exit code (see errors.ExitCode)."""
    be_patient()
    try:
        code = run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:  # before the work had begun
        print("interrupted; nothing was begun", file=sys.stderr)
        code = ExitCode.INTERRUPTED
    sys.stdout.flush()
    sys.exit(int(code))


def run(arguments: list[str]) -> ExitCode:
    """Do what a command line says, and return its exit code.

    Results go to standard output, everything else to standard error.
    """
    parser = build_parser()
    arguments, behind = _split(arguments)
    if (empty := _empty(arguments)) is not None:
        return _report(
            UserError(f"{empty or 'an argument'}: nothing is given; is a variable of the shell unset?"), False
        )
    options, rest = parser.parse_known_args(arguments)
    if behind is not None:
        options.behind = behind
    if hasattr(options, "unknown"):  # the verb says what they may have been meant for
        options.unknown, rest = rest, []
    # argparse takes key=value arguments only right behind the file; people also write them last.
    if rest and not (hasattr(options, "overrides") and all("=" in r and not r.startswith("-") for r in rest)):
        getattr(options, "parser", parser).error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    if not hasattr(options, "work"):
        parser.print_help()
        return ExitCode.OK
    configure_logging()
    try:
        prepare_home()
        options.work(options)
    except KeyboardInterrupt:
        print(f"interrupted; {options.interrupted}", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except Exception as error:
        return _report(error, options.debug)
    return ExitCode.OK


def _split(arguments: list[str]) -> tuple[list[str], list[str] | None]:
    """Return what is for us, and what stands behind ``--`` and is for the program that the verb starts; None where the
    verb starts none. argparse would take the first option behind it for one of ours."""
    verb = next((word for word in arguments if not word.startswith("-")), "")
    if verb not in PASS_ON or "--" not in arguments:
        return arguments, None
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _empty(arguments: list[str]) -> str | None:
    """The first argument without a value: an empty path would mean the working directory."""
    return next((word for word in arguments if not word or (word.startswith("--") and word.endswith("="))), None)


def _report(error: Exception, debug: bool) -> ExitCode:
    """Print one line about an error, or its traceback, and return the exit code that it means."""
    known: Exception | None = error
    if isinstance(error, OSError):
        known = of_the_system(error) or OpenMathError(f"the system says: {words_of(error)}")
    elif isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from "):  # of pathlib's resolve
        known = UserError(str(error), remedy="links lead in a circle; name the file itself")
    elif isinstance(error, MemoryError):
        known = OpenMathError("out of memory; close other programs, or ask for less at once")
    elif isinstance(error, ImportError | SyntaxError) and (file := _of_others(error)) is not None:
        remedy = "install its package anew, or take what is of another Python out of PYTHONPATH"
        known = UserError(f"it cannot be imported ({type(error).__name__}: {error})", file=file, remedy=remedy)
    if debug:
        traceback.print_exception(error)
    if isinstance(known, OpenMathError):
        print(f"openmath: {known}", file=sys.stderr)
        return known.exit_code
    if not debug:
        where = ", ".join(reversed(getattr(error, "__notes__", [])))  # such as the stage and its unit
        what = f"defect in {where}" if where else "defect"
        print(f"openmath: {what}: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
    return ExitCode.FAILURE


def _of_others(error: ImportError | SyntaxError) -> str | None:
    """The file that could not be imported, where it is none of this package's."""
    last = [frame.filename for frame in traceback.extract_tb(error.__traceback__)[-1:]]
    files = [error.filename] if isinstance(error, SyntaxError) else [*last, error.path]
    return next((file for file in files if file and not Path(file).is_relative_to(Path(__file__).parents[1])), None)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs. Their files import heavy packages only when a verb is run."""
    from nemo_openmath.cli import verbs

    parser = CommandParser(
        prog="openmath",
        description="Build a math-reasoning model: problems, solutions, training, checkpoints, evaluation.",
        epilog=f"example: openmath recipe run {EXAMPLES['recipe run']}\n{EXIT_CODES}\n",
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"openmath {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    groups = parser.add_subparsers(title="commands", metavar="COMMAND")
    for group in verbs.GROUPS:
        group(groups)
    return parser


if __name__ == "__main__":
    main()

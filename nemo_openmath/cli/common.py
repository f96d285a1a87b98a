"""What the files of verbs share."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

from nemo_openmath.core.build import nearest
from nemo_openmath.core.errors import ExitCode, UserError

GOES_ON = "finished work is kept, the same command goes on from here"
AGAIN = "run the same command again"
REPLACE = (
    "remove stages that were made for other settings and make them again, even where hours of work lie there; in a "
    "folder that holds another run, take its place"
)
ALLOW_HOST = "a name under which others ask this server, beside the machine's own names; repeat it"
NOTHING_KEPT = "nothing was left behind; run the same command again"

EXIT_CODES = """exit codes: 0 done, 1 failure, 2 wrong input, 3 some items failed, 75 preempted,
76 hung, 77 the machine failed, 130 interrupted (3, 75, 76, 77, 130: run again)"""

EXAMPLES = {
    "recipe run": "examples/smoke.yaml --output runs/smoke",
    "recipe show": "examples/smoke.yaml stages.train1.training.lr=1e-4",
    "recipe status": "runs/smoke",
    "recipe report": "runs/smoke",
    "recipe stages": "rollout.generate",
    "recipe reference": "build/reference",
    "launch": "examples/qwen2.5-14b.yaml --cluster cluster.yaml --output /shared/runs/14b --check",
    "jobs status": "/shared/runs/14b",
    "jobs logs": "/shared/runs/14b train1 --follow",
    "jobs cancel": "/shared/runs/14b",
    "jobs resume": "/shared/runs/14b",
    "jobs watch": "/shared/runs/14b",
    "doctor": "--output runs/smoke",
    "plan": "qwen2.5-14b --gpus 32 --gpu h100",
    "sft": "job.yaml --processes 2 training.lr=1e-4",
    "certify": "runs/smoke/packs1 examples/base --output cert.json --packs 2",
    "diagnose": "losses.csv --certificate cert.json",
    "grade": "runs/mine/solutions --output graded.jsonl",
    "serve": "runs/smoke/student1 --port 8000",
    "generate": "generate.yaml --output runs/mine generate.samples=8",
    "evaluate": "./my-model --benchmark benchmark.jsonl --output runs/mine --samples 8",
    "evaluate table": "first=runs/round1 second=runs/round2 --table 6",
    "evaluate rescore": "runs/smoke --output runs/rescored --tokens 64",
    "evaluate compare": "before=runs/first after=runs/second --output runs/compared",
    "evaluate plan": "--problems 30 --difference 0.05",
    "evaluate decide": "decide.yaml --output runs/decided",
    "solve": "benchmark.jsonl --model ./my-model --output runs/solved --base-seconds 60",
    "contest replay": "runs/smoke/cot_graded --speed 1:110,8:72,16:51 --output replayed",
    "contest search": "rollouts.jsonl --choices choices.yaml --speed 16:51 --output searched",
    "contest loss": "rollouts.jsonl --speed 16:51 --policy policy.yaml",
    "contest calibrate": "runs/tiny/student2_tir_graded --output calibrated",
    "benchmark list": "",
    "benchmark prepare": "mine --from problems.jsonl --output benchmark.jsonl",
    "sandbox exec": "program.py --timeout 10",
    "sandbox serve": "--port 8700",
    "records show": "runs/smoke/tir_kept generation-3f2",
    "records head": "runs/smoke/tir_kept -n 3 --where mode=tir",
    "records grep": "-i 'wait, that' runs/smoke/cot_graded --where verdict=not_equal",
    "records export": "runs/smoke/tir_kept kept.parquet",
    "records check": "runs/smoke/tir_kept",
    "view": "runs/smoke",
    "trace": "runs/smoke packs1:0:3",
    "data stats": "runs/smoke/packs1 --tokenizer examples/base",
    "data verify": "runs/smoke/packs1",
    "data export": "runs/smoke/problems my-problems --licence cc-by-4.0 --language en",
    "data prompt": "runs/smoke/rows1 --mode genselect --output genselect.txt",
    "convert hf-to-megatron": "./Qwen2.5-1.5B ./megatron",
    "convert megatron-to-hf": "runs/smoke/train1/checkpoints/step-00000008 ./hf",
    "convert hf-to-trtllm": "runs/smoke/student1 ./trtllm --tp 2",
    "quantize": "runs/smoke/student1 ./int8 --format int8",
    "average": "runs/smoke/train1 --count 4 --output ./averaged",
    "merge": "--weights 0.3 0.7 ./cot ./tir --output ./merged",
    "inspect": "runs/smoke/student1",
}


class Help(argparse.HelpFormatter):
    """Help that shows every default, whether or not the argument has a text, and an epilog as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        value = action.default
        told = value in (None, False, argparse.SUPPRESS, []) or "default" in text or not action.option_strings
        return text if told else f"{text} (default: %(default)s)".lstrip()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)


class CommandParser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, as every error of the command: what is wrong and what to write."""

    otherwise: str | None = None
    """Of a group: the verb that is meant where the first word is no verb of it."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and its remedy on standard error and exit with code 2."""
        problem, remedy = self._mistake(message)
        where = self.prog.partition(" ")[2]
        self.exit(int(ExitCode.USER_ERROR), f"openmath: {f'{where}: ' if where else ''}{problem}; {remedy}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, and remember the words for :meth:`error`."""
        self._words: list[str] = list(args or ())
        if self.otherwise is not None and self._words[:1] not in [[name] for name in self._verbs()]:
            self._words.insert(0, self.otherwise)
            args = self._words
        return super().parse_known_args(args, namespace)

    def _verbs(self) -> list[str]:
        groups = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [name for group in groups for name in group.choices]

    def _mistake(self, message: str) -> tuple[str, str]:
        """(problem, remedy) of what argparse says."""
        if choice := re.search(r"invalid choice: '(?P<word>.*)' \(choose from (?P<known>.*)\)", message):
            known = choice["known"].replace("'", "").split(", ")
            return f"no {self._subject(message)} {choice['word']!r}", nearest(choice["word"], known)
        unknown = re.fullmatch(r"unrecognized arguments: (?P<words>.*)", message)
        missing = re.fullmatch(r"the following arguments are required: (?P<names>.*)", message)
        if unknown or missing:  # an option that is missing may be one that was misspelt
            for word in unknown["words"].split() if unknown else self._words:
                if meant := self._meant(word.partition("=")[0]):
                    return f"no option {word.partition('=')[0]}", f"did you mean {meant!r}?"
        if unknown:
            return f"cannot use {unknown['words']}", f"see {self.prog} --help"
        example = EXAMPLES.get(self.prog.partition(" ")[2])
        remedy = f"for example: {self.prog} {example}" if example else f"see {self.prog} --help"
        if missing:
            names = [name for name in missing["names"].split(", ") if name != "key=value"]
            return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} missing", remedy
        return message.removeprefix("argument "), remedy

    def _meant(self, word: str) -> str | None:
        """The option that a misspelt one is near to; None for what is right, and for what is no option."""
        known = [option for option in self._option_string_actions if option.startswith("--")]
        if not word.startswith("--") or any(option.startswith(word) for option in known):
            return None
        return next(iter(difflib.get_close_matches(word, known, 1, 0.6)), None)

    @staticmethod
    def _subject(message: str) -> str:
        """What a choice is of: ``command`` for ``argument COMMAND: invalid choice: ...``."""
        name = re.match(r"argument (\S+?):", message)
        return (
            name[1].lower() if name and not name[1].startswith("-") else f"choice of {name[1]}:" if name else "choice"
        )


def verb(
    parent: Any, name: str, text: str, work: Callable[[argparse.Namespace], None], *, interrupted: str = GOES_ON
) -> argparse.ArgumentParser:
    """Add a verb with its help and the function that does it. ``interrupted``: what is true after Ctrl-C."""
    parser: argparse.ArgumentParser = parent.add_parser(name, help=text, description=text, formatter_class=Help)
    full = parser.prog.partition(" ")[2]
    parser.epilog = f"example: {parser.prog} {EXAMPLES[full]}\n{EXIT_CODES}\n"
    parser.set_defaults(work=work, parser=parser, interrupted=interrupted)
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """Accept ``a.b=value`` anywhere on the line."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {example}")


def numbers(text: str) -> list[float]:
    """Read ``0.3,0.7`` as a list: an argparse type."""
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a list of numbers: {text!r} (write 0.3,0.7)") from None


def shard_of(text: str) -> tuple[int, int]:
    """Return ``I/N`` as (I, N)."""
    shard, _, shards = text.partition("/")
    if not (shard.isdigit() and shards.isdigit() and int(shard) < int(shards)):
        raise UserError(f"not a shard: {text!r}", remedy="write I/N with I from 0 to N-1, such as 0/8")
    return int(shard), int(shards)


def seconds(*, zero: bool = False) -> Callable[[str], float]:
    """Return an argparse type: seconds, more than none, or, with ``zero``, none as well."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}") from None
        if not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
            raise argparse.ArgumentTypeError(f"{text} seconds; choose {'0 or more' if zero else 'more than 0'}")
        return number

    return parse


def at_least(low: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number from ``low`` on."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"not a whole number: {text!r}") from None
        if number < low:
            raise argparse.ArgumentTypeError(f"{number} is out of range; choose {low} or more")
        return number

    return parse

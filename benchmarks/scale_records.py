"""Synthetic records at any number, made by stages of their own. ``scale.py`` starts this file; nobody else needs it.

    python benchmarks/scale_records.py openmath recipe run ...        the command, with the stages below among its kinds
    python benchmarks/scale_records.py prepare FOLDER ...             a tokenizer, and published rows for sft.read
    python benchmarks/scale_records.py rows FILE ...                  the rows that a peer filters
    python benchmarks/scale_records.py content FOLDER RECORD          what a stage left, sorted by id, as one digest

Every text is a function of the seed, the problem's number and the sample's. Lengths are log-normal around 34,000
characters for CoT, 26,000 for TIR with its code and output, 5,000 for the probe; ids are one for 3.9 characters, spread
over Qwen2.5's 151,936 entries. Of the CoT texts 14% are unfinished; of the others 70% are right, 22% wrong, 5% have no
box and 3% no summary. Words are drawn by frequency, formulas and phrases come back within a text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from nemo_openmath.chat import Message, Transcript
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.chat.transcript import OPENING, Author, Span
from nemo_openmath.core import records as record_types
from nemo_openmath.core.bounds import PositiveInt, Share
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.records import Generation, Mode, Problem, Record, read_drops, read_records
from nemo_openmath.core.stage import Result, StageContext, UnitStage, register

MODELS = {"cot": "DeepSeek-R1", "probe": "Qwen2.5-Math-72B-Instruct", "tir": "LIMO-Qwen-32B"}
CHARACTERS = {"cot": 34_000, "probe": 5_000, "tir": 26_000}
LIMITS = {"cot": 16_384, "probe": 2_048, "tir": 16_384}  # tokens
CHARS_PER_TOKEN = 3.9
ENTRIES = 151_936
PROMPT = "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{{}}.\n\n{}"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_WORDS = """
the of we is that and to so a in this for be if it as can but let then are which have with from by not on or so
there what how need get at all since must first thus hence where when each one two three only also because such
now these same more would will no value number case sum equation problem answer point function line angle square
triangle circle prime even odd integer positive negative real root term sequence product factor divide modulo
remainder equal greater less than between maximum minimum possible total choose ways probability expected count
side length area radius center distance parallel perpendicular midpoint tangent coordinates vector slope base
height volume surface polynomial degree coefficient constant variable linear quadratic cubic solution solve
substitute expand simplify factorize compute calculate evaluate assume suppose consider note observe recall check
verify wait hmm actually maybe perhaps alternatively however therefore finally step next again before after
using given known formula theorem lemma identity inequality bound limit derivative integral continuous series
converge converges set element subset permutation combination graph vertex edge path tree color row column matrix
determinant eigenvalue inverse symmetric digit decimal fraction ratio percent average median rate speed time hour
minute day year cost price left right top bottom inside outside both either neither any some every none other
another different distinct unique exactly least most about approximately directly simply just like looks seems
right okay good correct wrong mistake error sure confirm matches works holds fails true false statement proof
contradiction induction hypothesis condition constraint system pair solutions equations numbers values terms
cases points lines angles sides sequences integers primes factors roots zeros multiple multiples divisor divisors
power powers exponent logarithm base sine cosine tangent degrees radians complex imaginary conjugate modulus unit
"""
_PHRASES = (
    "Wait, let me check that again.",
    "Hmm, is that right?",
    "Let me think about this differently.",
    "Therefore, we have",
    "Alternatively, maybe we can use",
    "So the answer would be",
    "Let me verify this with a small case.",
    "which is a contradiction.",
    "Substituting back into the original equation, we get",
    "Let me compute each term step by step.",
    "That seems correct, but let me double-check.",
    "by the Cauchy-Schwarz inequality,",
    "without loss of generality, assume that",
    "Now, taking both sides modulo",
)
_WIDE = ("√", "≤", "∑", "π", "∠", "解", "因此", "所以答案是", "пусть", "следовательно", "ответ", "数列")
_EMOJI = "🤔"


def _vocabulary() -> tuple[list[str], np.ndarray]:
    """Return pieces of text and their cumulative weights: words by rank, numbers, symbols, ends of sentences."""
    words = list(dict.fromkeys(_WORDS.split()))
    words += [word + end for end in ("s", "ing", "ed", "ly") for word in words]
    weights = 1.0 / (np.arange(len(words)) + 3.0)
    symbols = [f"{a}{b}" for a in "abcdfghkmnpqrstuvwxyz" for b in ("", "_1", "_2", "^2", "^n", " + 1", " - 1", "/2")]
    symbols += [f"\\{name}{{{a}}}" for name in ("sqrt", "overline", "sin", "log") for a in "abcnxy"]
    numbers = [str(n) for n in (*range(200), *range(200, 10_000, 7))]
    ends = [".", ".", ",", ".\n\n", ":\n", "=", "=", "+", "-", "\\cdot", "\\implies"]
    parts = ((words, weights, 0.68), (symbols, None, 0.09), (numbers, None, 0.09), (ends, None, 0.14))
    shares = [(np.ones(len(names)) if weight is None else weight) for names, weight, _ in parts]
    scaled = [weight / weight.sum() * part[2] for weight, part in zip(shares, parts, strict=True)]
    return [name for part in parts for name in part[0]], np.cumsum(np.concatenate(scaled))


_PIECES, _CUMULATIVE = _vocabulary()


@dataclass(frozen=True)
class Corpus:
    """Everything that the records of a run are made from."""

    seed: int
    problems: int
    wide: float
    """Share of the texts with characters beyond Latin-1; a fifth of these have an emoji, too."""
    ids: bool
    """Whether spans of the model have token ids."""
    length: float = 1.0
    """Share of the usual length of a text."""

    def rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream])

    def prose(self, rng: np.random.Generator, characters: int, wide: bool = False) -> str:
        """Return a text of so many characters, in which some formulas and phrases come back."""
        count = characters // 4 + 8  # a piece and its space are longer than 4 characters
        own = [" ".join(_draw(rng, 6)) for _ in range(12)]
        pieces = _draw(rng, count)
        for at in np.flatnonzero(rng.random(count) < 0.06).tolist():
            pieces[at] = own[at % 12] if at % 3 else _PHRASES[at % len(_PHRASES)]
        if wide:
            for at in np.flatnonzero(rng.random(count) < 0.02).tolist():
                pieces[at] = _WIDE[at % len(_WIDE)]
            if rng.random() < 0.2:
                pieces[count // 8] = _EMOJI
        return " ".join(pieces)[:characters]

    def token_ids(self, rng: np.random.Generator, text: str) -> tuple[int, ...] | None:
        """Return ids that are as many and as long, written in digits, as those of Qwen2.5."""
        if not self.ids:
            return None
        drawn = np.exp(rng.random(int(len(text) / CHARS_PER_TOKEN) + 1) ** 0.8 * np.log(ENTRIES))
        return tuple(drawn.astype(np.int64).tolist())

    @lru_cache(maxsize=8)  # noqa: B019  # a corpus lives as long as its process
    def problem(self, number: int) -> tuple[Problem, Answers]:
        """Return a problem and its answers; a third of the problems come without their expected answer."""
        rng = self.rng(0, number)
        text = f"Problem {number}. {self.prose(rng, int(rng.integers(120, 500)))} Find the value of x."
        answers = Answers.draw(rng)
        expected = None if number % 3 == 0 else answers.right[0]
        return Problem.make(text, expected_answer=expected, source="synthetic"), answers

    def solution(self, mode: str, number: int, sample: int, samples: int) -> tuple[dict[str, Any], Transcript]:
        """Return the fields of a generation and its transcript. ``verdict`` is in neither: a stage finds it."""
        problem, answers = self.problem(number)
        rng = self.rng(1 + list(MODELS).index(mode), number, sample)
        draw, wide = rng.random(), bool(rng.random() < self.wide)
        answer = answers.right[int(rng.integers(len(answers.right)))]
        finish, closes = Finish.STOP, True
        if problem.expected_answer is None and sample <= samples // 2:
            pass  # a majority of right ones
        elif draw < 0.14:
            finish, closes = Finish.LENGTH if draw < 0.12 else Finish.REPETITION, False
        elif draw < 0.166:
            closes = False
        elif draw < 0.209:
            answer = None
        elif draw < 0.4:
            answer = answers.wrong[int(rng.integers(len(answers.wrong)))]
        mean, limit = (int(self.length * n) for n in (CHARACTERS[mode], LIMITS[mode] * CHARS_PER_TOKEN))
        length = int(np.clip(rng.lognormal(np.log(mean) - 0.125, 0.5), mean // 8, limit))
        if finish is Finish.LENGTH:
            length = limit
        end = "" if finish is not Finish.STOP else f" The answer is $\\boxed{{{answer}}}$." if answer else " I give up."
        summary = f"\n</think>\n\n{self.prose(rng, min(1500, length // 5))}" if closes else ""
        if mode == "probe":  # a model that does not think
            summary = ""
        spans, calls = self._spans(rng, mode, max(200, length - len(summary)), wide, summary + end)
        prompt = PROMPT.format(problem.problem)
        model, tokens = MODELS[mode], [int(len(span.text) / CHARS_PER_TOKEN) for span in spans]
        tools = [span.author is Author.TOOL for span in spans]
        record_mode = Mode.TIR if mode == "tir" else Mode.COT
        sampling = {"temperature": 0.7, "top_p": 0.95, "max_tokens": LIMITS[mode]}
        values = {
            "id": Generation.make_id(problem.id, record_mode, model, "synthetic", sampling, self.seed, sample),
            "parents": (problem.id,),
            "problem_id": problem.id,
            "mode": record_mode,
            "model": model,
            "sample": sample,
            "finish": finish,
            "expected_answer": problem.expected_answer,
            "prompt_tokens": int(len(prompt) / CHARS_PER_TOKEN),
            "completion_tokens": sum(n for n, tool in zip(tokens, tools, strict=True) if not tool),
            "runner_tokens": sum(n for n, tool in zip(tokens, tools, strict=True) if tool),
            "code_calls": calls,
            "budget": 8 if mode == "tir" else None,
        }
        tokenizer = f"synthetic-{model}" if self.ids else None
        return values, Transcript((Message("user", prompt),), tuple(spans), finish is Finish.STOP, tokenizer)

    def _spans(self, rng: np.random.Generator, mode: str, length: int, wide: bool, end: str) -> tuple[list[Span], int]:
        """Return the spans of a turn of about ``length`` characters before its ``end``, and the number of blocks."""

        def model(text: str) -> Span:
            return Span(Author.MODEL, text, self.token_ids(rng, text))

        if mode != "tir":
            opening = [Span(Author.TEMPLATE, OPENING)] if mode == "cot" else []
            return [*opening, model(self.prose(rng, length, wide) + end)], 0
        blocks = 0 if rng.random() < 0.08 else int(rng.integers(1, 7))
        spans, part = [], length // (blocks + 1)
        for number in range(blocks):
            code = "\n".join(f"{a} = {b} * {c} + {d}" for a, b, c, d in rng.integers(0, 999, (25, 4)).astype(str))
            printed = "\n".join(" ".join(row) for row in rng.integers(0, 99_999, (12, 6)).astype(str))
            text = self.prose(rng, max(50, part - 1500), wide)
            opening_text = OPENING if number == 0 else ""
            spans.append(model(f"{opening_text}{text}\n<tool_call>\n{code}\nprint(x)\n</tool_call>"))
            spans.append(Span(Author.TOOL, output_block(printed) + notice_block(7 - number)))
        return [*spans, model(("" if blocks else OPENING) + self.prose(rng, part, wide) + end)], blocks


@dataclass(frozen=True)
class Answers:
    """Right answers of a problem, all of one value, and wrong ones. The grader decides each pair of them."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Answers:
        a, b = int(rng.integers(2, 2000)), int(rng.choice([3, 7, 11, 13]))
        a += a % b == 0
        kind = rng.random()
        if kind < 0.6:
            return cls((str(a),), tuple(str(a + n) for n in (1, 2, 10)))
        if kind < 0.8:
            return cls(
                (rf"\frac{{{a}}}{{{b}}}", f"{a}/{b}", rf"\dfrac{{{a}}}{{{b}}}"), (rf"\frac{{{a + b}}}{{{b}}}", "0")
            )
        if kind < 0.9:
            return cls((rf"{b}\sqrt{{2}}", rf"\sqrt{{{2 * b * b}}}"), (rf"{b + 1}\sqrt{{2}}", str(b)))
        return cls((f"({a}, {b})", f"({a},{b})"), (f"({b}, {a})", f"({a}, {b + 1})"))


def _draw(rng: np.random.Generator, count: int) -> list[str]:
    return [_PIECES[n] for n in np.searchsorted(_CUMULATIVE, rng.random(count) * _CUMULATIVE[-1]).tolist()]


# -- stages ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProblemsConfig:
    problems: PositiveInt = 1


class SyntheticProblems(UnitStage[ProblemsConfig, Problem]):
    """Make the problems."""

    kind = "scale.problems"
    Config = ProblemsConfig
    record = Problem

    def units(self, context: StageContext) -> Iterable[tuple[str, Problem]]:
        corpus = Corpus(context.seed, self.config.problems, 0.0, False)
        return ((p.id, p) for p, _ in (corpus.problem(number) for number in range(corpus.problems)))

    async def process(self, unit: Problem, context: StageContext) -> Result:
        return Result([unit])


@dataclass(frozen=True)
class SolutionsConfig:
    mode: Literal["cot", "probe", "tir"] = "cot"
    samples: PositiveInt = 1
    wide: Share = 0.0
    ids: bool = True
    length: Share = 1.0


class SyntheticSolutions(UnitStage[SolutionsConfig, Generation]):
    """Make solutions of the problems, as a model would have sampled them."""

    kind = "scale.solutions"
    Config = SolutionsConfig
    ports = {"problems": "problems to solve"}
    takes = {"problems": "Problem"}
    record = Generation
    concurrency = 1

    def units(self, context: StageContext) -> Iterable[tuple[str, Generation]]:
        config = self.config
        corpus = Corpus(context.seed, 0, config.wide, config.ids, config.length)
        for problem in context.read("problems", Problem):
            number = int(problem.problem.split(".")[0].removeprefix("Problem "))
            for sample in range(config.samples):
                values, transcript = corpus.solution(config.mode, number, sample, config.samples)
                if "thinks" in Generation.__dataclass_fields__:  # as rollout.generate notes it, where it does
                    values["thinks"] = transcript.thinks
                yield values["id"], Generation(**values, transcript=transcript.to_json())

    def check_sum(self, context: StageContext, offered: int) -> None:
        """A problem is several units."""

    async def process(self, unit: Generation, context: StageContext) -> Result:
        return Result([unit])


def solutions(corpus: Corpus, mode: str, samples: int) -> Iterator[tuple[dict[str, Any], Transcript]]:
    """Yield the solutions of all problems, those of one problem together."""
    for number in range(corpus.problems):
        for sample in range(samples):
            yield corpus.solution(mode, number, sample, samples)


# -- what else a run needs ---------------------------------------------------------------------------------------------


def prepare(folder: Path, corpus: Corpus, samples: int) -> None:
    """Write ``published.jsonl``, rows in the columns of nvidia/OpenMathReasoning, and beside the folder a tokenizer,
    where there is none."""
    with (folder / "published.jsonl").open("wb") as file:
        for values, transcript in solutions(corpus, "cot", samples):
            if values["finish"] is not Finish.STOP:
                continue
            row = {
                "problem": transcript.messages[0].content.removeprefix(PROMPT.format("")),
                "generated_solution": transcript.text,
                "expected_answer": values["expected_answer"] or "",
                "problem_source": "synthetic",
                "inference_mode": "cot",
                "pass_rate_72b_tir": "0.5",
            }
            file.write(orjson.dumps(row) + b"\n")
    tokenizer = folder.parent / "tokenizer"
    if not tokenizer.exists():
        from tokenization import make_tokenizer

        make_tokenizer(tokenizer)
        (tokenizer / "chat_template.jinja").write_text(CHATML)
        (tokenizer / "config.json").write_text('{"model_type": "qwen2"}')


def write_rows(path: Path, corpus: Corpus, samples: int) -> None:
    """Write graded solutions as one flat JSON object a line, which is what datatrove reads without an adapter."""
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for number, (values, transcript) in enumerate(solutions(corpus, "cot", samples)):
            answers = corpus.problem(number // samples)[1]
            boxed = transcript.text.rpartition("\\boxed{")[2].rpartition("}$")[0] or None
            row = {
                "text": transcript.text,
                **values,
                "predicted_answer": boxed,
                "verdict": "equal" if boxed in answers.right else "not_equal",
                "messages": [{"role": m.role, "content": m.content} for m in transcript.messages],
                "ids": [i for span in transcript.spans for i in span.ids or ()],
            }
            file.write(orjson.dumps(row) + b"\n")


def content(folder: Path, kind: type[Record]) -> dict[str, Any]:
    """Return the number of records and drops of a stage, and a digest of all of them, sorted by id."""
    digests = sorted((r.id, hashlib.sha256(repr(_values(r)).encode()).hexdigest()) for r in read_records(folder, kind))
    drops = sorted((unit, drop.reason, drop.detail) for unit, drop in read_drops(folder))
    total = hashlib.sha256(repr((digests, drops)).encode()).hexdigest()
    return {"records": len(digests), "drops": len(drops), "sha256": total}


def _values(record: Record) -> list[Any]:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    if "transcript" in values:
        values["transcript"] = Transcript.from_json(values["transcript"])
    return list(values.values())


def main() -> None:
    if sys.argv[1] == "openmath":
        from nemo_openmath.cli.main import main as openmath

        register(SyntheticProblems)
        register(SyntheticSolutions)
        openmath(sys.argv[2:])
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["prepare", "rows", "content"])
    parser.add_argument("path", type=Path)
    parser.add_argument("record", nargs="?", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--problems", type=int, default=1)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--wide", type=float, default=0.0)
    parser.add_argument("--no-ids", action="store_true")
    parser.add_argument("--length", type=float, default=1.0)
    options = parser.parse_args()
    corpus = Corpus(options.seed, options.problems, options.wide, not options.no_ids, options.length)
    if options.what == "prepare":
        prepare(options.path, corpus, options.samples)
    elif options.what == "rows":
        write_rows(options.path, corpus, options.samples)
    else:
        print(json.dumps(content(options.path, getattr(record_types, options.record))))


if __name__ == "__main__":
    main()

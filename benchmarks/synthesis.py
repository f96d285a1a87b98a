"""What the stages that make data cost by themselves: everything but the model.

    python benchmarks/synthesis.py summarize [--solutions 4000] [--tokenizer FOLDER]
    python benchmarks/synthesis.py near_duplicates [--problems 540000]
    python benchmarks/synthesis.py decontaminate [--problems 540000] [--benchmark 20000] [--texts words | template]

``summarize``: solutions a second of ``solutions.summarize`` with an engine that answers at once. The prompts hold
solutions of 34,000 characters. Asked in text (the server cuts it), in ids (a thread of this process does), and, as the
peer, in ids that are made where the requests are made.

``near_duplicates``: the stage over problems of which a tenth repeats another one in another form, with another word
that only asks, or misspelt, and a tenth repeats one with another constant. It is checked that the former are dropped,
each for the one it was made of, and nothing else.

``decontaminate``: seconds to find the candidates of every problem, of mathematical prose in 20,000 words or of a
template of 570 characters with nine numbers, where every text is similar to every other one: by n-grams alone, and by
words and n-grams (the lexical retriever). The peer compares with all texts that share a gram, over 100 of the problems.
With prose, there follow how many of the benchmark's own problems are among the candidates when they come in another
form, and the whole stage.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import re
import resource
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from rich.console import Console
from tokenization import make_tokenizer, text

from nemo_openmath.chat import ChatTokenizer, Message, Transcript
from nemo_openmath.core.engine import Capabilities, Chunk, Completion, Finish, Request, Usage
from nemo_openmath.core.progress import Progress
from nemo_openmath.core.records import Generation, Problem, Record, RecordWriter, read_drops, read_records
from nemo_openmath.core.stage import Services, Stage, StageContext
from nemo_openmath.grading import GradingPool, majority
from nemo_openmath.inference import asking
from nemo_openmath.synthesis.problems.decontaminate import Decontaminate, DecontaminateConfig
from nemo_openmath.synthesis.problems.near_duplicates import NearDuplicates, NearDuplicatesConfig
from nemo_openmath.synthesis.problems.ngram_index import NgramIndex, normalised
from nemo_openmath.synthesis.problems.retrievers import LexicalRetriever
from nemo_openmath.synthesis.solutions.summarize import Summarize, SummarizeConfig


class InstantEngine:
    """Answers every request at once with one text."""

    model = "instant"

    def __init__(self, answer: str, *, same_tokens: bool):
        self.capabilities = replace(Capabilities(True, True, True, False, True, False), same_tokens=same_tokens)
        self.completion = Completion(answer, (1, 2, 3), Finish.STOP, None, Usage(9000, 0, 500))

    async def complete(self, request: Request) -> Completion:
        return self.completion

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        yield Chunk(self.completion.text, completion=self.completion)

    async def close(self) -> None: ...


class Lent(Services):
    """Lends one engine, its tokenizer and a grading pool."""

    vote = staticmethod(majority)

    def __init__(
        self,
        engine: InstantEngine | None = None,
        tokenizer: ChatTokenizer | None = None,
        pool: GradingPool | None = None,
    ):
        self._engine, self._tokenizer, self._pool = engine, tokenizer, pool

    async def engine(self, name: str) -> tuple[InstantEngine, ChatTokenizer]:
        return self._engine, self._tokenizer

    async def sandbox(self) -> None:
        raise NotImplementedError

    def encoded_with(self, stage: str, tokenizer: ChatTokenizer) -> bool:
        return False

    async def grading(self) -> GradingPool:
        return self._pool


def store(folder: Path, records: Sequence[Record]) -> Path:
    with RecordWriter(folder) as writer:
        for record in records:
            writer.commit(record.id, [record])
    return folder


async def run(stage: Stage, output: Path, services: Services, **ports: Path) -> tuple[float, float]:
    """Run a stage; return its wall and CPU seconds."""
    output.mkdir()
    progress = Progress("benchmark", console=Console(file=io.StringIO()))
    context = StageContext("benchmark", {p: [f] for p, f in ports.items()}, output, 1, services, progress)
    wall, cpu = time.perf_counter(), time.process_time()
    await stage.run(context)
    return time.perf_counter() - wall, time.process_time() - cpu


def load_tokenizer(model: Path | None, folder: Path) -> ChatTokenizer:
    """Return the tokenizer of a model folder; of None, one that is trained in ``folder``."""
    if model is None:
        model = make_tokenizer(folder / "model")
        turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        (model / "chat_template.jinja").write_text(turns + "<|im_start|>assistant\n")
    return ChatTokenizer.load(model)


def vocabulary(rng: random.Random) -> list[str]:
    """Return 20,000 words, the commonest first."""
    syllables = [a + b for a in "bcdfghlmnprstv" for b in ("a", "e", "i", "o", "u", "ar", "en", "is", "or")]
    words = ("".join(rng.choices(syllables, k=rng.randint(1, 4))) + "s" for _ in range(40_000))
    return list(dict.fromkeys(words))[:20_000]


class Prose:
    """Makes problems of mathematical prose: words by their rank, as in a language, and formulas."""

    def __init__(self) -> None:
        self._rng = random.Random(1)
        self._words = vocabulary(self._rng)
        self._weights = list(accumulate(1 / (rank + 3) for rank in range(len(self._words))))

    def __call__(self) -> str:
        rng = self._rng
        words = rng.choices(self._words, cum_weights=self._weights, k=rng.randint(15, 60))
        for _ in range(rng.randint(2, 6)):
            a, b, x = rng.randrange(1, 100), rng.randrange(1, 1000), rng.choice("abcnxyz")
            form = rng.choice(
                ["${x}^{a}+{b} = 0$", "$\\frac{{{a}}}{{{x}}} \\leq {b}$", "$f({x}) = {a}{x}-{b}$", "${b}$"]
            )
            words.insert(rng.randrange(len(words)), form.format(a=a, b=b, x=x))
        return "Find the " + " ".join(words) + "."


class Template:
    """Makes problems of one template."""

    def __init__(self) -> None:
        self._rng = random.Random(1)

    def __call__(self) -> str:
        return _TEMPLATE.format(*(self._rng.randrange(1, 1000) for _ in range(9)))


_TEMPLATE = (
    "A train leaves the city of Springfield at {} kilometres per hour and travels for {} hours before it stops at a "
    "station where {} passengers leave and {} passengers enter the train. A second train leaves the same city {} "
    "minutes later and travels at {} kilometres per hour along a parallel track. After how many minutes does the "
    "second train catch up with the first train, if the first train waits for {} minutes at the station and the second "
    "train does not stop before it has travelled {} kilometres? Give the answer as a fraction in lowest terms, plus {}."
)


async def near_duplicates(folder: Path, count: int) -> None:
    make, rng = Prose(), random.Random(2)
    originals: dict[str, str] = {}  # id of a copy -> id of what it is a copy of
    with RecordWriter(folder / "problems") as writer:
        number = 0
        while number < count:
            text = make()
            first = Problem.make(text)
            variants = [first]
            if rng.random() < 0.1:
                form = rng.choice(["Please find the ", "find  the\n", "Compute ", "Let us find "])
                variants.append(Problem.make(form + text.removeprefix("Find the ").replace("\\leq", "≤")))
                originals[variants[-1].id] = first.id
            if rng.random() < 0.1:
                variants.append(Problem.make(re.sub(r"\d+", lambda m: str(int(m[0]) + 1), text, count=1)))
            for problem in variants:
                writer.commit(problem.id, [problem])
            number += len(variants)
    wall, cpu = await run(NearDuplicates(NearDuplicatesConfig()), folder / "out", Lent(), problems=folder / "problems")
    pairs = {(unit, drop.detail.partition(":")[0]) for unit, drop in read_drops(folder / "out")}
    assert {frozenset(pair) for pair in pairs} == {frozenset(pair) for pair in originals.items()}, (
        "other ones than planted"
    )
    print(f"{number} problems, {len(pairs)} near-duplicates: {wall:.0f} s ({cpu:.0f} s CPU), {peak():.0f} MiB at most")


async def decontaminate(folder: Path, count: int, size: int, texts: str) -> None:
    make: Callable[[], str] = Prose() if texts == "words" else Template()
    held = [(str(n), make()) for n in range(size)]
    began = time.perf_counter()
    index = NgramIndex(held, ngram=8, threshold=0.3)
    seconds, length = time.perf_counter() - began, sum(len(text) for _, text in held) / size
    print(f"{size} texts of {length:.0f} characters: index in {seconds:.1f} s")
    began_cpu = time.process_time()
    lexical = LexicalRetriever([text for _, text in held], ngram=8, threshold=0.1)
    print(f"words and n-grams: index in {time.process_time() - began_cpu:.1f} s CPU")
    seconds, cpu, found, sample = 0.0, 0.0, 0, []
    lexical_cpu, proposed, tenth = 0.0, 0, 0.0
    for number in range(count):
        text = make()
        began, cpu_began = time.perf_counter(), time.process_time()
        nearest = index.nearest(text, 5)
        seconds += time.perf_counter() - began
        cpu += time.process_time() - cpu_began
        found += len(nearest)
        cpu_began = time.process_time()
        proposed += len(lexical.nearest([text], 5)[0])
        lexical_cpu += time.process_time() - cpu_began
        if number + 1 == count // 10:
            tenth = lexical_cpu
        if number < 100:
            sample.append((text, nearest))
    each = f"{1e3 * cpu / count:.2f} ms CPU each"
    print(f"{count} problems: {seconds:.0f} s ({each}), {found} candidates, {peak():.0f} MiB at most", flush=True)
    print(
        f"words and n-grams: {lexical_cpu:.1f} s CPU, {1e3 * lexical_cpu / count:.2f} ms each "
        f"({1e4 * tenth / max(count, 1):.2f} in the first tenth), {lexical_cpu / cpu:.1f} times the n-grams alone; "
        f"{proposed / count:.1f} candidates a problem, {peak():.0f} MiB at most",
        flush=True,
    )
    if texts == "words":
        for name, leak in LEAKS.items():
            leaked = [leak(held[n][1], n) for n in range(0, 500, 5)]
            hits = [any(i == held[5 * n][0] for _, i, _ in index.nearest(text, 5)) for n, text in enumerate(leaked)]
            both = [any(i == 5 * n for _, i in near) for n, near in enumerate(lexical.nearest(leaked, 5))]
            shares = f"{100 * sum(both) / len(both):.0f}% are among the candidates, {100 * sum(hits) / len(hits):.0f}%"
            print(f"benchmark problems, {name}: {shares} of n-grams alone")
    where: dict[str, list[int]] = defaultdict(list)
    sets = [grams(text) for _, text in held]
    for n, own in enumerate(sets):
        for gram in own:
            where[gram].append(n)
    began = time.process_time()
    for text, nearest in sample:
        shared: Counter[int] = Counter()
        for gram in (own := grams(text)):
            shared.update(where.get(gram, ()))
        scored = sorted((-both / (len(own) + len(sets[n]) - both), n) for n, both in shared.items())
        assert [(-s, *held[n]) for s, n in scored[:5] if -s >= 0.3] == nearest, "other candidates"
    peer = (time.process_time() - began) / len(sample)
    print(
        f"all texts that share a gram: {1e3 * peer:.2f} ms CPU each, {peer * count / cpu:.0f} times as long", flush=True
    )
    if texts == "words":
        del where, sets
        ports = {"problems": folder / "problems", "benchmark": folder / "benchmark"}
        with RecordWriter(ports["problems"]) as writer:
            for _ in range(some := min(count, 20_000)):
                problem = Problem.make(make())
                writer.commit(problem.id, [problem])
        store(ports["benchmark"], [Problem.make(text) for _, text in held])
        tokenizer = load_tokenizer(None, folder)
        with GradingPool() as pool:
            for way, same_tokens in (("text", True), ("ids", False)):
                engine = InstantEngine("Why: other numbers.\nVerdict: no", same_tokens=same_tokens)
                services = Lent(engine, tokenizer, pool)
                _, cpu = await run(Decontaminate(DecontaminateConfig()), folder / f"out {way}", services, **ports)
                print(
                    f"the stage over {some} problems, with prompts in {way} for a model that answers at once: "
                    f"{1e3 * cpu / some:.2f} ms CPU each",
                    flush=True,
                )


def in_halves(text: str) -> list[str]:
    words = text.split()
    return words[len(words) // 2 :] + words[: len(words) // 2]


def reworded(text: str, share: float, number: int) -> str:
    rng = random.Random(number)
    return " ".join("another" if word.isalpha() and rng.random() < share else word for word in text.split())


# (a benchmark problem, its number) -> the same problem, or one like it, in the training data
LEAKS: dict[str, Callable[[str, int], str]] = {
    "verbatim but for form": lambda text, n: "  ".join(text.upper().replace("$", "").split()),
    "their halves exchanged": lambda text, n: " ".join(in_halves(text)),
    "variables renamed": lambda text, n: re.sub(r"\b[abcnxyz]\b", "t", text),
    "all constants changed": lambda text, n: re.sub(r"\d+", lambda m: str(int(m[0]) + 7 + n), text),
    "a tenth of the words replaced": lambda text, n: reworded(text, 0.1, n),
    "a fifth of the words replaced": lambda text, n: reworded(text, 0.2, n),
    "a third of the words replaced": lambda text, n: reworded(text, 0.33, n),
}


def grams(text: str) -> set[str]:
    plain = normalised(text)
    return {plain[i : i + 8] for i in range(max(1, len(plain) - 7))}


def peak() -> float:
    """Return the most memory that this process had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def summarize(folder: Path, solutions: int, model: Path | None) -> None:
    tokenizer = load_tokenizer(model, folder)
    rng = random.Random(1)
    bodies = [text(rng, 8000)[:34_000] for _ in range(50)]
    problems = [Problem.make(f"Problem {n}: {text(rng, 60)}") for n in range(solutions)]
    generations = [
        Generation(
            id=f"generation-{n}",
            problem_id=problem.id,
            mode="cot",
            model="m",
            sample=0,
            transcript=Transcript.from_text(
                (Message("user", problem.problem),), f"<think>\n{n} {bodies[n % 50]}\n</think>\nIt is \\boxed{{42}}."
            ).to_json(),
            finish="stop",
            predicted_answer="42",
            verdict="equal",
        )
        for n, problem in enumerate(problems)
    ]
    ports = {
        "generations": store(folder / "generations", generations),
        "problems": store(folder / "problems", problems),
    }
    del generations
    answer = f"The solution says that {text(rng, 300)} and so it is \\boxed{{42}}."
    limit = asking.LONG
    with GradingPool() as pool:
        for name, same_tokens, long in (
            ("text", True, limit),
            ("ids, in threads", False, limit),
            ("ids", False, 10**9),
        ):
            asking.LONG = long
            services = Lent(InstantEngine(answer, same_tokens=same_tokens), tokenizer, pool)
            wall, cpu = await run(Summarize(SummarizeConfig()), folder / f"out {name}", services, **ports)
            print(f"{name:16} {solutions / wall:6.0f} solutions/s, {1e3 * cpu / solutions:5.2f} ms CPU each")
    folders = sorted(folder.glob("out *"))
    written = [{record.id: record for record in read_records(path, Generation)} for path in folders]
    assert len(written) == 3, folders
    assert written[0] == written[1] == written[2], "the records differ"
    print(f"equal records; peak memory {peak():.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["summarize", "near_duplicates", "decontaminate"])
    parser.add_argument("--solutions", type=int, default=4000)
    parser.add_argument("--tokenizer", type=Path, help="folder of a model; default: one trained in place")
    parser.add_argument("--problems", type=int, default=540_000)
    parser.add_argument("--benchmark", type=int, default=20_000)
    parser.add_argument("--texts", choices=["words", "template"], default="words")
    parser.add_argument("--folder", type=Path, help="where the files lie; default: the system's folder for such")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        if arguments.what == "summarize":
            asyncio.run(summarize(Path(name), arguments.solutions, arguments.tokenizer))
        elif arguments.what == "near_duplicates":
            asyncio.run(near_duplicates(Path(name), arguments.problems))
        else:
            asyncio.run(decontaminate(Path(name), arguments.problems, arguments.benchmark, arguments.texts))


if __name__ == "__main__":
    main()

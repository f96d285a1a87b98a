"""Decoding with guessed tokens against plain decoding: the same requests, the same tokens, one run.

    python benchmarks/drafting.py [MODEL] [--drafter DIR] [--batches 1,4,16] [--tokens 120] [--samples 1] [--threads 1]
    python benchmarks/drafting.py MODEL --generations runs/drafter/held_out --drafter runs/drafter/drafter --page F.md

MODEL: a model folder with a chat template, which is asked short problems of mathematics; without it, the base model of
the tiny world (``examples/base``), which goes on with documents of that world. For each number of requests at once, and
greedily as well as at temperature 0.7: the seconds of plain decoding over those with n-grams (``ngram``) and, with
``--drafter``, a trained drafter, in processor time and in wall time, the tokens of a step of a request, and how many
guesses were right at the first place behind the newest token, at the second, and so on. Prompts are not counted.
``--samples``: of each problem. ``--page``: a file for the drafter's ``acceptance.md`` and, behind it, these numbers.
``--generations``: a folder of solutions of the model: all that it wrote there, between runs of code as well, is asked
for again, from what stood before it. ``--unguessable``: random prompts and temperature 2 instead, of which nothing can
be guessed; what looking costs.

Each engine is new, and has had as many other requests before the clock starts, in which it learns what a pass takes and
how often guesses are right. Engines share one copy of the weights and take turns ``--rounds`` times; the fastest round
of each counts.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from nemo_openmath.chat import Transcript, encode_many
from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.engine import Sampling
from nemo_openmath.core.records import Generation, read_records
from nemo_openmath.core.records.manifest import refuse_inside_stage
from nemo_openmath.inference.embedded.batch import ContinuousBatch
from nemo_openmath.inference.embedded.compiled import compile_decoder
from nemo_openmath.inference.embedded.decoder import Decoder, DraftTree, PrefillChunk
from nemo_openmath.inference.embedded.drafters import NGRAM, NONE, draft_source
from nemo_openmath.inference.embedded.requests import EngineRequest
from nemo_openmath.inference.embedded.text import Detokenizer, StopTable
from nemo_openmath.inference.embedded.weights import Weights, load_weights
from nemo_openmath.models.stop_tokens import end_ids
from nemo_openmath.speculative.report import PAGE

BASE = Path(__file__).parents[1] / "examples" / "base"
CONTEXT = 1024
TASK = "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}.\n\n"
PROBLEMS = [
    "A rectangle has sides 12 and 17. What is its area?",
    "Find the sum of all integers from 3 to 41.",
    "What is the remainder when 7^20 is divided by 13?",
    "A train travels 120 km in 1.5 hours. How far does it travel in 4 hours?",
    "Solve x^2 - 5x + 6 = 0. What is the larger root?",
    "How many primes are below 50?",
    "Find the greatest common divisor of 252 and 105.",
    "What is 15% of 240?",
    "The sum of three consecutive integers is 72. What is the largest of them?",
    "A fair coin is tossed 4 times. What is the probability of exactly two heads?",
    "What is the area of a circle with radius 5?",
    "If 3x + 7 = 22, what is x^2 + 1?",
    "How many ways are there to choose 3 books of 8?",
    "The angles of a triangle are in the ratio 2:3:4. What is the largest angle in degrees?",
    "What is the least common multiple of 12, 15 and 20?",
    "A number is increased by 20% and then decreased by 20%. By how many percent has it changed?",
]


@dataclass(frozen=True)
class Measured:
    """One round of one engine."""

    cpu: float
    wall: float
    tokens: dict[int, tuple[int, ...]]
    generated: int
    row_steps: int
    accepted: list[int]


def prompts_of(model: Path, tokenizer: ChatTokenizer, count: int, vocab: int, guessable: bool) -> list[np.ndarray]:
    """The prompts of ``count`` problems."""
    if not guessable:
        rng = np.random.default_rng(0)
        return [rng.integers(3, vocab, 60).astype(np.int32) for _ in range(count)]
    if model == BASE:
        from nemo_openmath.demo.corpus import documents

        return [np.array(tokenizer.encode(d)[:24], np.int32) for d in itertools.islice(documents(77), count)]
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    texts = itertools.islice(itertools.cycle(PROBLEMS), count)
    return [np.array(tokenizer.encode(turn.format(TASK + text)), np.int32) for text in texts]


def written(folder: Path, tokenizer: ChatTokenizer) -> list[tuple[np.ndarray, int]]:
    """What stands before each piece that the model wrote in the generations of a folder, and the piece's tokens."""
    pieces: list[tuple[np.ndarray, int]] = []
    for generation in read_records(folder, Generation):
        (encoded,) = encode_many([Transcript.from_json(generation.transcript)], tokenizer)
        ids, own = np.array(encoded.ids, np.int32), np.array(encoded.loss_mask, bool)
        edges = np.flatnonzero(np.diff(own.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
        pieces += [
            (ids[:start], int(end - start)) for start, end in edges.tolist() if end < CONTEXT and end > start + 4
        ]
    return pieces


def measure(batch: ContinuousBatch, requests: Sequence[EngineRequest], threads: int) -> Measured:
    """Decode all ``requests`` at once."""
    tokens: dict[int, tuple[int, ...]] = {}
    for i, request in enumerate(requests):

        def done(completion: object, i: int = i) -> None:
            tokens[i] = completion.token_ids  # type: ignore[attr-defined]

        batch.add(replace(request, on_done=done))
    batch.turn(0.0, some_cancelled=False)  # the prompts, and a token
    s = batch.statistics
    generated, row_steps, accepted = s.generated_tokens, s.row_steps, list(s.accepted)
    clock = time.thread_time if threads == 1 else time.process_time
    prompts, prefill = np.zeros(2), batch.decoder.prefill

    def timed(chunks: Sequence[PrefillChunk]) -> object:
        nonlocal prompts
        start = np.array([clock(), time.perf_counter()])
        try:
            return prefill(chunks)
        finally:
            prompts += np.array([clock(), time.perf_counter()]) - start

    batch.decoder.prefill = timed  # type: ignore[method-assign, assignment]
    cpu, wall = clock(), time.perf_counter()
    while not batch.idle:
        batch.turn(0.0, some_cancelled=False)
    cpu, wall = np.array([clock() - cpu, time.perf_counter() - wall]) - prompts
    batch.decoder.prefill = prefill  # type: ignore[method-assign]
    right = [now - before for now, before in itertools.zip_longest(s.accepted, accepted, fillvalue=0)]
    return Measured(cpu, wall, tokens, s.generated_tokens - generated, s.row_steps - row_steps, right)


def passes(decoder: Decoder, rounds: int = 12, before: int = 150) -> None:
    """Print the median time of a pass over some tokens behind ``before`` others, taking turns."""
    decoder.prefill([PrefillChunk(0, 0, np.arange(before, dtype=np.int32))])
    sizes = (1, 2, 3, 4, 6, 8, 12, 16, 24)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for size in sizes * rounds:
        began = time.perf_counter()
        decoder.verify([DraftTree(0, before, np.arange(size))])
        seconds[size].append(time.perf_counter() - began)
    one = float(np.median(seconds[1]))
    for size, each in seconds.items():
        print(f"{size:3} tokens {1e3 * float(np.median(each)):8.3f} ms   x{float(np.median(each)) / one:.2f}")


def engines(
    model: Path, decoder: Decoder, weights: Weights, drafters: Sequence[str], slots: int
) -> dict[str, ContinuousBatch]:
    """An engine for each drafter, over one decoder."""
    tokenizer = ChatTokenizer.load(model, chat=False)
    detokenizer = Detokenizer(tokenizer, end_ids(tokenizer))
    stops = StopTable(tokenizer, decoder.vocab, detokenizer)
    return {
        name: ContinuousBatch(decoder, detokenizer, stops, slots, 0, None, draft_source(name, decoder, weights))
        for name in drafters
    }


def compare(
    make: Callable[[], dict[str, ContinuousBatch]], requests: list[EngineRequest], rounds: int, threads: int
) -> list[str]:
    """Print a line for each engine, and return what a table says of each. The first half of the requests comes before
    the clock starts."""
    cells = []
    measured: dict[str, list[Measured]] = {}
    half = len(requests) // 2
    for _ in range(rounds):
        for name, batch in make().items():
            measure(batch, requests[:half], threads)
            measured.setdefault(name, []).append(measure(batch, requests[half:], threads))
    plain = measured[NONE]
    for name, all_rounds in measured.items():
        if any(m.tokens != plain[0].tokens for m in all_rounds):
            raise SystemExit(f"{name} decodes other tokens than plain decoding")
        best = min(all_rounds, key=lambda m: m.cpu)
        cpu = min(m.cpu for m in plain) / best.cpu
        wall = min(m.wall for m in plain) / min(m.wall for m in all_rounds)
        rate = best.generated / best.cpu
        line = f"  {Path(name).name:12} {rate:8.1f} tokens/CPU s   x{cpu:.2f} CPU  x{wall:.2f} wall"
        line += f"   {best.generated / best.row_steps:.2f} tokens a step"
        shares = " ".join(f"{n / best.row_steps:.2f}" for n in best.accepted[:8])
        print(line + (f"   right at place 1, 2, ..: {shares}" if shares else ""), flush=True)
        cells.append(f"{Path(name).name} | x{wall:.2f} | x{cpu:.2f} | {best.generated / best.row_steps:.2f} | {shares}")
    return cells


def write_page(file: Path, drafter: Path, rows: Sequence[str]) -> None:
    """Write what the drafter's training counted, and the speed that was measured, on one page."""
    measured = ["", "## How much faster, measured", "", "Against plain decoding by the embedded engine, here.", ""]
    measured += [
        "| requests at once | temperature | guesses of | wall time | CPU time | tokens a step | right, by place |"
    ]
    measured += ["|---|---|---|---|---|---|---|", *rows]
    file.write_text((drafter / PAGE).read_text() + "\n".join(measured) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=BASE)
    parser.add_argument("--drafter", help="folder of a trained drafter")
    parser.add_argument("--generations", type=Path, help="folder of solutions of the model")
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--requests", type=int, default=0, help="at each batch size, one batch after the other")
    parser.add_argument("--temperatures", default="0,0.7")
    parser.add_argument("--unguessable", action="store_true")
    parser.add_argument("--passes", action="store_true", help="only measure passes over 1, 2, .. tokens of one request")
    parser.add_argument("--page", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.page is not None:
        if options.drafter is None or not (Path(options.drafter) / PAGE).is_file():
            parser.error(f"--page is for the {PAGE} in the folder of a --drafter")
        refuse_inside_stage(options.page.absolute().parent)
    rows: list[str] = []
    torch.set_num_threads(options.threads)
    sizes = [int(size) for size in options.batches.split(",")]
    drafters = [NONE, NGRAM, *([options.drafter] if options.drafter else [])]
    temperatures = [2.0] if options.unguessable else [float(t) for t in options.temperatures.split(",")]
    with torch.inference_mode():
        weights = load_weights(options.model, max_context=CONTEXT)
        decoder = compile_decoder(weights, max(sizes), options.threads)
        if decoder is None:
            raise SystemExit("no C compiler: nothing to compare")
        if options.passes:
            passes(decoder)
            return
        tokenizer = ChatTokenizer.load(options.model, chat=options.generations is not None)
        for size in sizes:
            count = 2 * max(options.requests, size)
            if options.generations:
                pieces = written(options.generations, tokenizer)
                if count > len(pieces):
                    raise SystemExit(f"{options.generations}: {len(pieces)} pieces, and {count} are asked for")
                asked = pieces[:count]
            else:
                problems = prompts_of(
                    options.model, tokenizer, -(-count // options.samples), decoder.vocab, not options.unguessable
                )
                asked = [(prompt, options.tokens) for prompt in problems for _ in range(options.samples)][:count]
            for temperature in temperatures:
                tokens = sum(length for _, length in asked[count // 2 :])
                print(f"{size} at once, temperature {temperature:g}, {count // 2} requests, at most {tokens} tokens")
                make = partial(engines, options.model, decoder, weights, drafters, size)
                top_p = 1.0 if options.unguessable else 0.95
                requests = [
                    EngineRequest(prompt, Sampling(length, temperature, top_p, seed=i), lambda _: None)
                    for i, (prompt, length) in enumerate(asked)
                ]
                cells = compare(make, requests, options.rounds, options.threads)
                rows += [f"| {size} | {temperature:g} | {row} |" for row in cells]
    if options.page is not None:
        write_page(options.page, Path(options.drafter), rows)


if __name__ == "__main__":
    main()

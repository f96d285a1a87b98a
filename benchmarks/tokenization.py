"""Rows to token files against the bare tokenizers library, on the same cores.

    python benchmarks/tokenization.py [--tokenizer FOLDER]

The tokenizer is that of FOLDER, or a byte-level BPE of 8000 entries with Qwen2.5's splitting rule, trained here. Rows
are solutions of about 6000 tokens of mathematical text, a third of them with code and output. The bare library only
turns the same texts into ids (``encode_batch_fast`` on all cores, ids fetched); ours parses the rows, renders the chat
template, cuts transcripts by author, writes ids, masks and checksums. A quarter of the rows is tokenized, too: the
difference of the two runs is what rows cost once the processes have started. Last, what token ids cost in a record.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path
from timeit import repeat

import orjson
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nemo_openmath.chat import Author, ChatTokenizer, Message, Span, Transcript
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.core.records import SftRow
from nemo_openmath.data.tokens.tokenization import write_tokens

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS = (
    r"let the triangle be inscribed in a circle with radius r and note that since f is continuous on [0, 1] we have "
    r"by the mean value theorem wait, check whether n = 2k + 1 is prime; then \frac{a}{b} + \sqrt{x^2 + y^2} = c "
    r"therefore \sum_{i=1}^{n} i = \frac{n(n+1)}{2} so the remainder modulo 7 equals 3 hence \angle ABC = 60^\circ "
    r"suppose for contradiction every prime p divides exactly one of these consecutive integers however"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text(rng: random.Random, words: int) -> str:
    known = _WORDS.split()
    parts = []
    for _ in range(words):
        parts.append(rng.choice(known) if rng.random() < 0.85 else str(rng.randrange(10**6)))
        if rng.random() < 0.06:
            parts.append(".\n\n")
    return " ".join(parts)


def make_tokenizer(folder: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = random.Random(0)
    tokenizer.train_from_iterator((text(rng, 2000) for _ in range(100)), trainer)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "chat_template.jinja").write_text(_CHATML)
    return folder


def make_rows(path: Path, count: int) -> list[str]:
    """Writes the rows; returns the texts that the bare library is given: each sample as one text."""
    rng = random.Random(1)
    texts = []
    with path.open("wb") as file:
        for i in range(count):
            words = max(50, int(rng.lognormvariate(0, 0.8) * 2600))
            solution = "<think> " + text(rng, words)
            if i % 3 == 0:
                call = f"<tool_call>\nprint({i})\n</tool_call>{output_block(str(i))}{notice_block(3)}"
                solution += call + text(rng, 100) + call
            transcript = Transcript.from_text((Message("user", text(rng, 60)),), solution + " </think> \\boxed{1}")
            row = SftRow(id=f"row-{i}", problem_id=f"p-{i}", mode="cot", transcript=transcript.to_json())
            file.write(orjson.dumps(row) + b"\n")
            texts.append(transcript.messages[0].content + transcript.text)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--tokenizer", type=Path, help="folder of a Hugging Face model, instead of the trained tokenizer"
    )
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = options.tokenizer or make_tokenizer(folder / "tokenizer")
        texts = make_rows(folder / "rows.jsonl", options.rows)
        size = sum(len(t) for t in texts) / 1e6
        backend = ChatTokenizer.load(tokenizer).backend
        lines = (folder / "rows.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "quarter.jsonl").write_bytes(b"".join(lines[: len(lines) // 4]))
        for turn in range(options.repeat):
            start, cpu = time.perf_counter(), time.process_time()
            tokens = 0
            for at in range(0, len(texts), 64):
                tokens += sum(
                    len(e.ids) for e in backend.encode_batch_fast(texts[at : at + 64], add_special_tokens=False)
                )
            bare, bare_cpu = time.perf_counter() - start, time.process_time() - cpu
            runs = []
            for part in ("rows", "quarter"):
                start, before = time.perf_counter(), _cpu()
                written = write_tokens(folder / f"{part}.jsonl", tokenizer, folder / f"{part}{turn}", workers=cores)
                runs.append((written.num_tokens, time.perf_counter() - start, _cpu() - before))
            (ours, wall, ours_cpu), (quarter, _, quarter_cpu) = runs
            share = (ours - quarter) / (ours_cpu - quarter_cpu) / (tokens / bare_cpu)
            print(
                f"{size:.0f} MB of text, {cores} cores: bare library {tokens / bare / 1e6:.2f}M tokens/s "
                f"({bare_cpu:.1f} s CPU), ours {ours / wall / 1e6:.2f}M tokens/s "
                f"({ours_cpu:.1f} s CPU, start of the workers included): "
                f"{ours / wall / (tokens / bare):.0%} of its rate, {bare_cpu / ours_cpu:.0%} by CPU time, "
                f"{share:.0%} once started",
                flush=True,
            )
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        print(f"peak memory of a worker: {peak:.0f} MB")
    token_ids(random.Random(2))


def token_ids(rng: random.Random) -> None:
    """Print what the ids of a solution cost in its line: as base64, and as a list of integers."""
    ids = tuple(rng.randrange(151_936) for _ in range(8_730))
    spans = (Span(Author.MODEL, text(rng, 5_600), ids),)
    row = Transcript((Message("user", text(rng, 60)),), spans, tokenizer="t").to_json()
    listed = row | {"pieces": [row["pieces"][0] | {"ids": list(ids)}]}
    for name, value in (("a list of integers", listed), ("base64", row)):
        line = orjson.dumps(value)
        parse, read, write = (
            min(repeat(call, number=100, repeat=5)) / 100 * 1e6
            for call in (
                lambda line=line: orjson.loads(line),
                lambda line=line: Transcript.from_json(orjson.loads(line)),
                lambda value=value: orjson.dumps(value),
            )
        )
        print(
            f"ids as {name}: {len(line)} bytes, parsed in {parse:.0f} us ({read:.0f} with its transcript), "
            f"written in {write:.0f} us"
        )


def _cpu() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


if __name__ == "__main__":
    main()

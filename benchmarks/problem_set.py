"""What the problem set costs before and around the model: everything but the model, from raw threads to answers.

    python benchmarks/problem_set.py [--threads 20000,40000] [--near 0.8] [--folder DISK]

Threads of a forum are made up: BBCode, HTML, old spellings, Windows' line ends, quotes; a post of 0.4 kB and a
discussion of 2.5 kB on average. A twentieth repeat another one's post in other white space, a twentieth repeat one with
another constant. Then every stage runs, with an engine that answers at once: reading (markup, languages, forums),
threads that are there twice, extraction, problems that are there twice, answers. It is checked that the repeated posts
are merged, those with another constant are marked (with ``--near``, which needs datasketch) and kept, and that every
problem has the answer of its discussion.

For each stage: CPU seconds at each number of threads, their ratio, and what the last one means for 620,000 threads. The
peer is reading the same rows with orjson and writing them again.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import resource
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
from synthesis import Lent, Prose, load_tokenizer, run

from nemo_openmath.core.engine import Capabilities, Chunk, Completion, Conversation, Finish, Request, Usage
from nemo_openmath.core.records import Problem, Thread, read_drops, read_records
from nemo_openmath.core.stage import Stage
from nemo_openmath.grading import GradingPool
from nemo_openmath.synthesis.problems.answers import ExtractAnswers
from nemo_openmath.synthesis.problems.extract import Extract
from nemo_openmath.synthesis.problems.near_duplicates import NearDuplicates, NearDuplicatesConfig
from nemo_openmath.synthesis.problems.thread_groups import GroupThreads, GroupThreadsConfig
from nemo_openmath.synthesis.problems.threads import ReadThreads, ReadThreadsConfig

PAPER = 620_000
_DRESS = (
    "{x}", "{x}", "Hi all!\r\n{x}\r\nThanks!", "[b]{x}[/b]", "[color=red][size=150]{x}[/size][/color]\r\n:D",
    "[quote=\"book\"]old[/quote]\r\n{x}", "{x}\r\n\r\n[img]http://a.b/c.png[/img]", "{x}<br/>see a<sub>12</sub>&lt;b",
    "{x}\r\n$ a \\equal{{}} 1 \\plus{{}} b $",
)  # fmt: skip


class AnsweringEngine:
    """Copies the problem of the post, or the number of the discussion, out of the prompt."""

    model = "instant"
    capabilities = Capabilities(False, True, True, False, False, False, conversations=True)

    async def complete(self, request: Request) -> Completion:
        prompt = request.prompt
        text = prompt.turns[-1].content if isinstance(prompt, Conversation) else str(prompt)
        if answers := re.findall(r"The answer is (\d+)\.", text):
            reply = f"Answer: {answers[-1]}"
        else:
            reply = "Problem 1: " + text[text.rindex("Find the ") :].partition("\n")[0].removesuffix("<|im_end|>")
        return Completion(reply, (), Finish.STOP, None, Usage(500, 0, 100))

    async def stream(self, request: Request) -> AsyncIterator[Chunk]:
        completion = await self.complete(request)
        yield Chunk(completion.text, completion=completion)

    async def close(self) -> None: ...


def write_threads(path: Path, count: int) -> None:
    """Write raw rows, 46 in a hundred of them with markup, of which a twentieth each repeats or nearly repeats one."""
    rng, prose = random.Random(1), Prose()
    replies = [prose().removeprefix("Find the ") for _ in range(3000)]
    last = ""
    with path.open("wb") as file:
        for number in range(count):
            place = number % 20  # 1 repeats 0, 2 nearly does
            text = prose().rstrip(".") + f" with {number}."
            if place == 1:
                text = last
            elif place == 2:
                text = re.sub(r"\d+", lambda digits: str(int(digits[0]) + 1), last, count=1)
            last = text if place == 0 else last
            dress = "{x}" if place < 3 else rng.choice(_DRESS)
            post = dress.format(x=text) + ("  \r\n" if place == 1 else "")
            said = [
                f"{rng.choice(replies)} \\equal{{}} [i]{rng.randrange(99)}[/i]" for _ in range(rng.randrange(1, 14))
            ]
            said += [f"[quote]{text}[/quote]\r\n[hide]The answer is {len(text)}.[/hide]"]
            discussion = "\n\n".join(f"Post {at}:\n{reply}" for at, reply in enumerate(said, 1))
            row = {"forum_post": post, "forum_discussions": discussion, "problem_source": f"forum {place % 3}"}
            file.write(orjson.dumps(row) + b"\n")


def rewrite(path: Path, copy: Path) -> float:
    """Read rows and write them again; return the CPU seconds."""
    began = time.process_time()
    with path.open("rb") as rows, copy.open("wb") as file:
        for line in rows:
            file.write(orjson.dumps(orjson.loads(line)) + b"\n")
    return time.process_time() - began


async def measure(folder: Path, count: int, near: float | None) -> dict[str, float]:
    """Return the CPU seconds of each stage over so many threads."""
    folder.mkdir()
    rows = folder / "threads.jsonl"
    write_threads(rows, count)
    print(f"{count} threads of {rows.stat().st_size / count / 1e3:.1f} kB", flush=True)
    seconds = {"orjson": rewrite(rows, folder / "copy.jsonl")}
    with GradingPool() as pool:
        services = Lent(AnsweringEngine(), load_tokenizer(None, folder), pool)  # type: ignore[arg-type]

        async def stage(name: str, work: Stage, **ports: Path) -> Path:
            _, seconds[name] = await run(work, folder / name, services, **ports)
            return folder / name

        settings = ReadThreadsConfig(languages=("en",), not_sources=("middle school",))
        threads = await stage("read_threads", ReadThreads(settings), files=rows)
        grouped = await stage("group_threads", GroupThreads(GroupThreadsConfig(near=near)), threads=threads)
        extracted = await stage("extract", Extract(Extract.Config()), threads=grouped)
        distinct = await stage("near_duplicates", NearDuplicates(NearDuplicatesConfig()), problems=extracted)
        answered = await stage(
            "extract_answers", ExtractAnswers(ExtractAnswers.Config()), problems=distinct, threads=threads
        )
    check(threads, grouped, answered, count, near)
    return seconds


def check(threads: Path, grouped: Path, answered: Path, count: int, near: float | None) -> None:
    """Check that what was planted came out as it should."""
    drops = list(read_drops(grouped))
    repeated, changed = len(range(1, count, 20)), len(range(2, count, 20))
    assert len(drops) == repeated, f"{len(drops)} posts of {repeated} were merged"
    groups: dict[str, int] = {}
    for thread in read_records(grouped, Thread):
        if group := thread.extra.get("near_group"):
            groups[group] = groups.get(group, 0) + 1
    if near is not None:
        assert len(groups) >= 0.98 * changed, f"{len(groups)} groups of {changed}"
    problems = list(read_records(answered, Problem))
    right = sum(p.expected_answer is not None and abs(int(p.expected_answer) - len(p.problem)) <= 1 for p in problems)
    assert right == len(problems), f"{right} of {len(problems)} problems have the answer of their discussion"
    print(f"  {len(drops)} equal posts merged, {len(groups)} groups of similar ones, {right} answers", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="20000,40000", help="numbers of threads, smallest first")
    parser.add_argument("--near", type=float, help="similarity from which posts are marked; needs datasketch")
    parser.add_argument("--folder", type=Path, help="where the files lie; default: the system's folder for such")
    arguments = parser.parse_args()
    counts = [int(number) for number in arguments.threads.split(",")]
    measured = []
    for count in counts:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            measured.append(asyncio.run(measure(Path(name) / "run", count, arguments.near)))
        print(f"  {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most so far", flush=True)
    peer = measured[-1]["orjson"]
    print(f"{'CPU s':16}" + "".join(f"{count:>10}" for count in counts) + "     ratio   ms each  x orjson  at 620,000")
    total = {name: sum(m.values()) - m["orjson"] for name, m in enumerate(measured)}
    rows = [(name, [m[name] for m in measured]) for name in measured[0]] + [("all stages", [*total.values()])]
    for name, seconds in rows:
        ratio, each = seconds[-1] / seconds[0], seconds[-1] / counts[-1]
        print(
            f"{name:16}" + "".join(f"{s:10.1f}" for s in seconds)
            + f"{ratio:10.2f}{1e3 * each:10.3f}{seconds[-1] / peer:10.1f}{each * PAPER:10.0f} s"
        )  # fmt: skip


if __name__ == "__main__":
    main()

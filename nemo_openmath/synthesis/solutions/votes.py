"""A model votes on fragments of solutions, and every reply is written down as soon as it is there.

A reply counts where its last line is ``Judgement: WORD`` with a word that the question knows, and nothing before it
says another one. Any other reply is asked for again with another seed; after the last attempt the vote is invalid.

Nothing is judged twice. Equal fragments are one, in all solutions of a job. Replies stand in ``votes-<shard>.jsonl``,
one JSON object a line, and what stands there is not asked again, whenever the stage was stopped. About 200 bytes of
memory are held for each fragment and question.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from nemo_openmath.chat import Template
from nemo_openmath.core.engine import Engine, Finish, Sampling
from nemo_openmath.core.records.ids import content_id, derive_seed
from nemo_openmath.core.tokenizer import Tokenizer
from nemo_openmath.inference.asking import PreparedPrompt

_LABEL = r"(?:judge?ment|verdict|decision|classification)(?:\s+is)?[\s*_`\"')\]]{0,8}[:=\uff1a\u2013\u2014-]"
_OPEN = r"[\s*_`\"'\[(]{0,8}(?:\\(?:boxed|text(?:bf)?)\{){0,2}"
_DRESS = r"[\W_]{0,40}"  # bounded, as is what follows: two runs without a bound are tried in all ways to share a line
_BEGIN = rf"{_DRESS}(?:(?:my|the|final|overall|conclusion|so|therefore)[\s:,]{{1,8}}){{0,3}}{_DRESS}"
_CHOICE = 128  # in the bytes of a vote: this and more is a choice, less the number of replies that nobody could read
MOST_ATTEMPTS = 100

Votes = tuple[str | None, ...]
"""What was voted; None stands for an invalid vote."""


@dataclass(frozen=True)
class VoteQuestion:
    """What is asked about a fragment."""

    name: str
    template: Template
    words: Mapping[str, str]
    """Word at the end of a reply, as a regular expression -> the choice that it is."""

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.words.values()))

    def parse(self, text: str) -> str | None:
        """Return the choice that a reply commits itself to, else None."""
        lines = [line for line in text.splitlines() if re.search(r"\w", line)]
        words = "|".join(self.words)
        labelled = rf"{_LABEL}{_OPEN}({words})\b"
        last = lines[-1].strip() if lines else ""
        # Behind the label and the word there may be a reason; the word alone stands alone.
        if (match := re.match(_BEGIN + labelled, last, re.IGNORECASE)) is not None:
            rest = re.findall(rf"\b(?:{words})\b", last[match.end() :], re.IGNORECASE)
        elif (match := re.fullmatch(rf"{_BEGIN}{_OPEN}({words})\b[\W_]*", last, re.IGNORECASE)) is None:
            return None
        else:
            rest = []
        rest += [match[1] for match in re.finditer(labelled, text, re.IGNORECASE)]
        choice = self._choice(match[1])
        return choice if {self._choice(word) for word in rest} <= {choice} else None

    def _choice(self, word: str) -> str:
        return next(choice for name, choice in self.words.items() if re.fullmatch(name, word, re.IGNORECASE))


class Panel:
    """A model that votes ``votes`` times on each question about a fragment."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        folder: Path,
        shard: str,
        *,
        votes: int,
        attempts: int,
        temperature: float,
        max_tokens: int,
        seed: int,
        concurrency: int,
    ):
        self._engine, self._tokenizer, self._seed = engine, tokenizer, seed
        self._votes, self._attempts, self._temperature, self._max_tokens = votes, attempts, temperature, max_tokens
        self._folder = folder
        self._slots = asyncio.Semaphore(concurrency)
        self._running: dict[bytes, asyncio.Task[None]] = {}
        self._cast = read_votes(folder)
        self._journal = _open_journal(folder / f"votes-{shard}.jsonl")

    async def close(self) -> None:
        """Cancel what is asked for solutions that have failed by now, and close the file of replies."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._journal.close()

    async def vote(self, question: VoteQuestion, fragment: str) -> Votes:
        """Return the votes on a fragment. Raises EngineError where the engine could not answer; what it answered by
        then is kept."""
        key = self._key(question, fragment)
        if (task := self._running.get(key)) is None:
            task = self._running[key] = asyncio.ensure_future(self._ask(key, question, fragment))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        await task
        return tuple(question.choices[v - _CHOICE] if v >= _CHOICE else None for v in self._cast[key][: self._votes])

    def asked(self, question: VoteQuestion) -> str:
        """Return a digest of all that shapes a reply but the fragment: replies of another model or prompt are no
        votes."""
        how = (self._engine.model, question.template.digest, self._temperature, self._max_tokens, self._seed)
        return content_id("asked", question.name, *how).rpartition("-")[2]

    def counts(self, questions: Iterable[VoteQuestion]) -> dict[str, Any]:
        """Return what the files of replies hold of these questions, as they are asked now: votes by question and
        choice, replies, and an example of one that could not be read."""
        votes: Counter[str] = Counter()
        replies = unreadable = 0
        example = ""
        for row in self._replies(questions):
            replies += 1
            if row["choice"] is None:
                unreadable += 1
                example = min(example or row["reply"], row["reply"])
            else:
                votes[f"{row['question']}: {row['choice']}"] += 1
        counts = {"replies": replies, "unreadable_replies": unreadable, "votes": dict(sorted(votes.items()))}
        return counts | ({"unreadable_example": example} if example else {})

    def choices(self, questions: Iterable[VoteQuestion]) -> Iterable[dict[str, set[str]]]:
        """Return for each different fragment that was asked about: question -> what was voted."""
        choices: dict[str, dict[str, set[str]]] = {}
        for row in self._replies(questions):
            voted = choices.setdefault(row["fragment"], {}).setdefault(row["question"], set())
            if row["choice"] is not None:
                voted.add(sys.intern(row["choice"]))
        return choices.values()

    def _replies(self, questions: Iterable[VoteQuestion]) -> Iterator[dict[str, Any]]:
        asked = {self.asked(question) for question in questions}
        return (row for row in _rows(self._folder) if row["asked"] in asked and row["vote"] < self._votes)

    def _key(self, question: VoteQuestion, fragment: str) -> bytes:
        return bytes.fromhex(content_id("vote", self.asked(question), fragment_digest(fragment)).rpartition("-")[2])

    async def _ask(self, key: bytes, question: VoteQuestion, fragment: str) -> None:
        """Ask for the votes that are missing. An error ends it once all that is under way has ended."""
        cast = self._cast.setdefault(key, bytearray())
        cast.extend(bytes(max(0, self._votes - len(cast))))
        missing = [n for n in range(self._votes) if cast[n] < self._attempts]
        if not missing:
            return
        prompt = await PreparedPrompt.of(self._engine, self._tokenizer, question.template.messages(fragment=fragment))
        digest = fragment_digest(fragment)
        results = await asyncio.gather(
            *(self._one(key, digest, question, prompt, n) for n in missing), return_exceptions=True
        )
        if (error := next((result for result in results if result is not None), None)) is not None:
            raise error

    async def _one(self, key: bytes, digest: str, question: VoteQuestion, prompt: PreparedPrompt, number: int) -> None:
        cast = self._cast[key]
        while cast[number] < self._attempts:
            seed = derive_seed(self._seed, "vote", key.hex(), number, cast[number])
            sampling = Sampling(max_tokens=self._max_tokens, temperature=self._temperature, seed=seed)
            async with self._slots:
                completion = await prompt.complete(sampling)
            answer = prompt.answer(completion.text) if completion.finish is Finish.STOP else ""
            choice = question.parse(answer)
            cast[number] = cast[number] + 1 if choice is None else _CHOICE + question.choices.index(choice)
            line: dict[str, Any] = {"key": key.hex(), "fragment": digest, "asked": self.asked(question)}
            line |= {"question": question.name, "vote": number}
            line |= {"choice": choice, "state": cast[number]} | (
                {"reply": completion.text[-500:]} if choice is None else {}
            )
            self._journal.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            self._journal.flush()


def read_votes(folder: Path) -> dict[bytes, bytearray]:
    """Return what stands in the files of replies: key of a fragment and question -> a byte for each vote."""
    cast: dict[bytes, bytearray] = {}
    for row in _rows(folder):
        votes = cast.setdefault(bytes.fromhex(row["key"]), bytearray())
        votes.extend(bytes(max(0, row["vote"] + 1 - len(votes))))
        votes[row["vote"]] = max(votes[row["vote"]], row["state"])
    return cast


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    files: Iterable[Path] = sorted(folder.glob("votes-*.jsonl"))
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(orjson.JSONDecodeError):  # torn by a kill
                    yield orjson.loads(line)


def _open_journal(file: Path) -> BinaryIO:
    """Open a file for appending lines. A line that a killed run left torn is ended, so that the next stays readable."""
    journal = file.open("ab+")
    if journal.tell():
        journal.seek(-1, os.SEEK_END)
        if journal.read(1) != b"\n":
            journal.write(b"\n")
    return journal


def fragment_digest(text: str) -> str:
    """Return the name of a fragment in the files of replies."""
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).hexdigest()

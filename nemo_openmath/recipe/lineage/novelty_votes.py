"""The votes on the code of a solution that ``solutions.novelty`` dropped. A solution that it kept holds them itself.

Votes are stored by fragment, because equal code is judged once; so the fragments of the solution are made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import orjson

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.records.shown import transcript_of
from nemo_openmath.data.records.stored import StoredRecord
from nemo_openmath.recipe.lineage.run_stages import RunStage, RunStages
from nemo_openmath.recipe.lineage.search import StoredNote
from nemo_openmath.synthesis.solutions.fragments import fragments_of
from nemo_openmath.synthesis.solutions.votes import fragment_digest

NOVELTY = "solutions.novelty"
Lines = list[tuple[RunStage, StoredRecord]]


def novelty_votes(stages: RunStages, records: dict[str, Lines]) -> Iterator[StoredNote]:
    """Yield the votes on each block of code of the solutions that a stage has read and does not hold."""
    for stage in stages:
        if stage.kind != NOVELTY or not stage.begun:
            continue
        read = {source.folder for source in stages.before(stage)}
        blocks: dict[str, list[tuple[str, int]]] = {}  # digest of a fragment -> (solution, number of its block)
        for name, lines in records.items():
            folders = {held.folder for held, _ in lines}
            line = next((record for held, record in lines if held.folder in read), None)
            if line is not None and "finish" in line.fields and stage.folder not in folders:
                for number, digest in enumerate(_fragments(line, int(stage.settings.get("context_chars", 0)))):
                    blocks.setdefault(digest, []).append((name, number))
        yield from _notes(stage, blocks)


def _fragments(line: StoredRecord, context_chars: int) -> list[str]:
    try:
        transcript = transcript_of(line)
    except UserError:  # its text is gone, which is said where it is shown
        return []
    return [] if transcript is None else [fragment_digest(f.text) for f in fragments_of(transcript, context_chars)]


def _notes(stage: RunStage, blocks: dict[str, list[tuple[str, int]]]) -> Iterator[StoredNote]:
    most = int(stage.settings.get("votes", 0))
    for path in sorted(stage.folder.glob("votes-*.jsonl")) if blocks else ():
        votes: dict[str, dict[str, dict[int, str | None]]] = {}
        with path.open("rb") as lines:
            for line in lines:
                start = line.find(_FRAGMENT) + len(_FRAGMENT)
                if line[start : line.find(b'"', start)].decode(errors="replace") in blocks:
                    with contextlib.suppress(orjson.JSONDecodeError):  # torn by a kill
                        row = orjson.loads(line)
                        if row["vote"] < most:
                            cast = votes.setdefault(row["fragment"], {}).setdefault(row["question"], {})
                            cast[row["vote"]] = row["choice"] or cast.get(row["vote"])
        for digest, questions in votes.items():
            for name, number in blocks[digest]:
                cast_votes = {question: [cast[n] for n in sorted(cast)] for question, cast in questions.items()}
                yield StoredNote(name, stage, path, {"block": number, **cast_votes})


_FRAGMENT = b'"fragment":"'

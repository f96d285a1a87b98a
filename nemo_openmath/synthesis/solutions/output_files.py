"""Which files of a folder of the reference pipeline hold generations, and whether they are whole.

A run of ``ns generate`` leaves in its output folder, for each random seed S (and without ``-rsS`` where it had none):

    output-rsS.jsonl                  all rows, in the order of the input
    output-rsS.jsonl.done             empty; the seed is finished
    output-rsS.jsonl-async            rows as they come, with _async_position; gone once the seed is finished
    output-rsS_chunk_K.jsonl          the same three of a chunk of the input. Once the last chunk is done, all are
    output-rsS_chunk_K.jsonl.done     joined to output-rsS.jsonl, and the chunks (not their .done) are deleted
    output-rsS_chunk_K.jsonl-async

Steps that only rewrite rows (majority answers, summaries) leave ``output-rsS.jsonl`` alone, without ``.done``.

So a seed is whole where its joined file is there and nothing beside it is unfinished: no ``-async``, and no chunk
unless the joined file is ``.done``. How many chunks there were stands nowhere; a seed of chunks alone is whole only
where the user says their number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nemo_openmath.core.errors import UserError

_NAME = re.compile(
    r"output(?:-rs(?P<seed>\d+))?(?:_chunk_(?P<chunk>\d+))?\.jsonl(?P<packed>\.gz|\.zst)?(?P<state>-async|\.done)?"
)


@dataclass(frozen=True, slots=True)
class GenerationFile:
    """A file of generations."""

    path: Path
    seed: int | None
    """The random seed; None of ``output.jsonl`` and of files of other names."""
    whole: bool = True
    """Whether whoever wrote it had finished: its last line is not cut off."""


@dataclass
class _Seed:
    """What a folder holds of one seed: chunk (None: all joined) -> its file, by state."""

    done: set[int | None] = field(default_factory=set)
    files: dict[int | None, Path] = field(default_factory=dict)
    partial: dict[int | None, Path] = field(default_factory=dict)

    def missing(self, chunks: int | None, highest: int) -> str | None:
        """Return what of it is not finished, in words; None where it is whole. ``chunks``: their number, where the user
        says it; ``highest``: the highest chunk of any seed of the folder."""
        if None in self.done and None in self.files:
            return None
        if None in self.partial:
            return "it is being generated (-async)"
        parts = {chunk for chunk in (*self.files, *self.partial, *self.done) if chunk is not None}
        if not parts:
            return None if None in self.files else "its file is not there, though .done is"
        expected = chunks or highest + 1
        finished = {chunk for chunk in self.done & self.files.keys() if chunk not in self.partial}
        if open_chunks := sorted(set(range(expected)) - finished):
            names = ", ".join(map(str, open_chunks[:5])) + (", ..." if len(open_chunks) > 5 else "")
            return f"chunk{'s' * (len(open_chunks) > 1)} {names} not done"
        if chunks is None:
            return f"chunks 0 to {highest} are done but not joined: another one may not have begun"
        return None


def output_files(path: Path, *, chunks: int | None, unfinished: bool) -> tuple[list[GenerationFile], list[str]]:
    """Return the files of generations at a path (a file, or a folder of the reference), and what is not finished.

    ``chunks``: into how many each seed was divided. ``unfinished``: take what is there of unfinished seeds, too.

    Raises UserError where there is none, where a seed is not finished (unless ``unfinished``), and for a folder of
    summaries.
    """
    if not path.exists():
        raise UserError("no such file", file=path, remedy="check the path")
    if not path.is_dir():
        match = _NAME.fullmatch(path.name)
        seed = int(match["seed"]) if match is not None and match["seed"] else None
        return [GenerationFile(path, seed, whole=not path.name.endswith("-async"))], []
    seeds = _seeds(path)
    if not seeds:
        raise _no_output(path)
    highest = max((chunk for seed in seeds.values() for chunk in _chunks(seed)), default=-1)
    files: list[GenerationFile] = []
    problems: list[str] = []
    for number in sorted(seeds, key=_joined_first):
        why = seeds[number].missing(chunks, highest)
        if why is not None:
            problems.append(f"{'output' if number is None else f'seed {number}'}: {why}")
        files += _of_seed(number, seeds[number], whole=why is None)
    if problems and not unfinished:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise UserError(
            f"not finished: {shown}",
            file=path,
            remedy="let its run end, say how many chunks there are (chunks: N), or write `unfinished: read` to take "
            "what is there",
        )
    return files, problems


def _of_seed(number: int | None, seed: _Seed, *, whole: bool) -> Iterator[GenerationFile]:
    """Yield the files to read of a seed. A chunk that lies beside the joined file is read, too: rows that are equal
    count once, and a joining that was cut off loses nothing."""
    for chunk in sorted(seed.files, key=_joined_first):
        yield GenerationFile(seed.files[chunk], number, whole or chunk in seed.done)
    for chunk in () if whole else sorted(seed.partial, key=_joined_first):
        yield GenerationFile(seed.partial[chunk], number, whole=False)


def _joined_first(number: int | None) -> tuple[bool, int]:
    return number is not None, number or 0


def _seeds(folder: Path) -> dict[int | None, _Seed]:
    seeds: dict[int | None, _Seed] = {}
    for file in sorted(folder.iterdir()):
        match = _NAME.fullmatch(file.name)
        if match is None or not file.is_file():
            continue
        seed = seeds.setdefault(int(match["seed"]) if match["seed"] else None, _Seed())
        chunk = int(match["chunk"]) if match["chunk"] else None
        if match["state"] == ".done":
            seed.done.add(chunk)
        else:
            same = seed.partial if match["state"] else seed.files
            if chunk in same:
                raise UserError(
                    f"{same[chunk].name} and {file.name} are of the same seed",
                    file=folder,
                    remedy="keep the one that is whole, or name both files instead of the folder",
                )
            same[chunk] = file
    return seeds


def _chunks(seed: _Seed) -> list[int]:
    return [chunk for chunk in (*seed.done, *seed.files, *seed.partial) if chunk is not None]


def _no_output(folder: Path) -> UserError:
    below = sorted(child for child in folder.iterdir() if child.is_dir() and _seeds(child))
    if any(re.fullmatch(r"output-rs\d+", child.name) for child in below):
        return UserError(
            f"a folder of summaries ({below[0].name}/): they are parts of solutions, whose reasoning is not in them",
            file=folder,
            remedy="name the step whose output-rs*.jsonl hold whole solutions: the one before, and then "
            "solutions.summarize, or the one after, in which they are joined",
        )
    names = ", ".join(child.name for child in below[:5])
    files = sorted(child.name for child in folder.glob("*.jsonl"))
    remedy = f"name one of {names}" if below else f"name a file, such as {files[0]}" if files else "check the path"
    return UserError("no output*.jsonl in this folder", file=folder, remedy=remedy)

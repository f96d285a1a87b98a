"""The question of a row as it stands in a file, for whoever looks for the prompt that it was written with.

of                             the question is
problem, generated_solution    the problem: in genselect, and where a file was made so, that is the whole prompt
input, output                  the input; of one that ChatML was put around already, what the user says in it.
                               A column ``problem`` beside them says where the problem stands
transcript, mode, ...          the messages of our own records
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from nemo_openmath.chat import RENDERED, Message, Transcript
from nemo_openmath.chat.blocks import budget_of
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Mode, read_manifest, read_records
from nemo_openmath.core.records.encoding import record_type
from nemo_openmath.core.records.store import record_lines
from nemo_openmath.core.records.types import Generation, SftRow
from nemo_openmath.data.rows.formatting import MODES, TURN, Reject, guess_mode, messages_of, own_row, text_of
from nemo_openmath.data.rows.prompt_recovery import SAMPLE, Recovery, RowQuestion, recover, reproduces
from nemo_openmath.data.rows.sources import read_source

Places = Iterator[tuple[str, Mode, RowQuestion]]


def question_of(row: Mapping[str, Any], mode: str | None = None) -> tuple[Mode, RowQuestion]:
    """Return the mode and the question of a raw row. ``mode``: what rows are that do not say so. Raises Reject."""
    if "transcript" in row:
        try:
            own, transcript = own_row(dict(row))
        except ValueError as error:
            raise Reject("not an SFT row", str(error)) from error
        return own.mode, _question(transcript.messages, transcript.text)
    problem = None
    if "generated_solution" in row:
        messages: tuple[Message, ...] = (Message("user", text_of(row, "problem")),)
        answer = text_of(row, "generated_solution")
    elif "input" in row and "output" in row:
        messages, answer = _unrendered(messages_of(text_of(row, "input"))), text_of(row, "output")
        problem = row.get("problem")
    else:
        raise Reject("unknown columns", ", ".join(sorted(row)))
    name = row.get("inference_mode") or mode or guess_mode(answer)
    if not isinstance(name, str) or name not in MODES:
        raise Reject("unknown inference mode", str(name))
    return MODES[name], _question(messages, answer, problem)


def _question(messages: Sequence[Message], answer: str, problem: object = None) -> RowQuestion:
    users = [m.content for m in messages if m.role == "user"]
    systems = [m.content for m in messages if m.role == "system"]
    if len(users) != 1 or len(systems) > 1:
        raise Reject("not one turn of the user")
    stated = problem.strip() if isinstance(problem, str) else ""
    stands_there = stated if stated and stated in users[0] else None  # another form of it tells no place
    return RowQuestion(users[0], systems[0] if systems else None, budget_of(answer), stands_there)


def _unrendered(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the turns of a prompt that ChatML was put around. Raises Reject for one of another chat format."""
    if [m.role for m in messages] != [RENDERED]:
        return messages
    turns = TURN.findall(messages[0].content)
    rest = TURN.sub("", messages[0].content).strip()
    if not turns or not rest.startswith("<|im_start|>assistant"):
        raise Reject("rendered by another chat format than ChatML")
    return tuple(Message(role, text) for role, text in turns)


def questions(source: str | Path, counts: Counter[str], *, mode: str | None = None, split: str | None = None) -> Places:
    """Yield (place, mode, question) of every row of files, a folder, a dataset of the Hub or the folder of a stage.
    Rows without one are counted by their reason."""
    manifest = read_manifest(Path(source)) if Path(source).is_dir() else None
    if manifest is not None:
        yield from _questions_of_stage(Path(source), counts)
        return
    named = mode or (split if split in MODES else None)
    for place, row in read_source(source, split=split):
        try:
            if isinstance(row, str):
                raise Reject("not a JSON object")
            yield str(place), *question_of(row, named)
        except Reject as error:
            counts[error.reason] += 1


def _questions_of_stage(folder: Path, counts: Counter[str]) -> Places:
    line = next((line for _, _, line in record_lines([folder])), b"{}")
    kind = record_type(orjson.loads(line))
    if kind not in (SftRow, Generation):
        raise UserError(f"holds records of type {kind.__name__ if kind else 'none'}, not rows", file=folder)
    for record in read_records(folder, kind):
        assert isinstance(record, SftRow | Generation)
        transcript = Transcript.from_json(record.transcript, ids=False)
        try:
            question = _question(transcript.messages, transcript.text)
            if isinstance(record, Generation) and record.budget is not None:
                question = replace(question, budget=record.budget)
            yield f"{folder.name} {record.id}", record.mode, question
        except Reject as error:
            counts[error.reason] += 1


@dataclass(slots=True)
class PromptsOfRows:
    """What was found out about the prompts of all rows of one mode."""

    recovery: Recovery
    """Of a sample of them."""
    modes: Counter[str]
    """Rows by mode."""
    unusable: Counter[str]
    """Rows without a question, by reason."""
    reproduced: list[int] = field(default_factory=list)
    """Of all rows, how many each prompt reproduces. A row counts for the first that does."""
    others: int = 0
    """Rows that none reproduces."""
    examples: list[str] = field(default_factory=list)
    """Places of some of these."""


def prompts_of(read: Callable[[Counter[str]], Places], mode: str | None, path: str) -> PromptsOfRows:
    """Recover the prompts of rows, and verify them on each row. The rows are read twice.

    ``read``: yields the rows of ``path``, and counts those without a question. ``mode``: whose prompts are wanted;
    None: of the one mode that there is. Raises UserError where there are several, or no row.
    """
    rng, modes, unusable = random.Random(0), Counter[str](), Counter[str]()
    samples: dict[str, list[RowQuestion]] = {}
    for _, own, question in read(unusable):
        modes[own] += 1
        sample = samples.setdefault(own, [])
        if len(sample) < SAMPLE:
            sample.append(question)
        elif (at := rng.randrange(modes[own])) < SAMPLE:
            sample[at] = question
    if mode is None and len(modes) > 1:
        listed = ", ".join(f"{count:,} {name}" for name, count in modes.most_common())
        remedy = f"choose one: --mode {modes.most_common(1)[0][0]}"
        raise UserError(f"the rows are of several modes ({listed})", file=path, remedy=remedy)
    chosen = mode or next(iter(modes), None)
    if chosen is None or not modes[chosen]:
        why = ", ".join(f"{count:,} {reason}" for reason, count in unusable.most_common(3))
        problem = f"there are no {chosen or ''} rows".replace("  ", " ") + (f" ({why})" if why else "")
        raise UserError(problem, file=path, remedy="give rows that hold their whole prompts")
    prompts = PromptsOfRows(recover(samples[chosen], chosen), modes, unusable)
    templates = [prompt.template for prompt in prompts.recovery.prompts]
    prompts.reproduced = [0] * len(templates)
    for place, own, question in read(Counter()) if templates else ():
        if own != chosen:
            continue
        number = next((n for n, template in enumerate(templates) if reproduces(template, question)), None)
        if number is not None:
            prompts.reproduced[number] += 1
            continue
        prompts.others += 1
        if len(prompts.examples) < 3:
            prompts.examples.append(place)
    return prompts

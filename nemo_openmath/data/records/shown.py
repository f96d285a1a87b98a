"""A record as text for people: a line of it, or all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemo_openmath.chat import Author, Kind, Transcript
from nemo_openmath.core.records import Generation, Group, Problem, SftRow, Thread
from nemo_openmath.core.records.bodies import Body
from nemo_openmath.core.records.encoding import record_type
from nemo_openmath.data.records.stored import StoredRecord

_SHORT = 100  # characters of a value that stands beside its name
_LEAST = 40  # characters of an excerpt


def printable(text: str) -> str:
    """Return a text without what would move the cursor: all but line ends and tabs is escaped."""
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def transcript_of(record: StoredRecord) -> Transcript | None:
    """Return the transcript of a record; None where its type has none. Raises UserError where it is not there, or no
    transcript."""
    if record.transcript is None:
        return None
    try:
        return Transcript.from_json(record.transcript)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise record.error(f"its transcript is none ({type(error).__name__}: {error})") from error


def summary_line(record: StoredRecord, width: int) -> str:
    """Return a line about a record, of about ``width`` characters: its id, what it is, and how its text begins."""
    row = record.fields
    kind = record_type(row)
    words: list[str] = [record.id]
    if kind is Generation:
        words += [row["mode"], row["finish"], row.get("verdict") or "-", *_answers(row)]
        words.append(f"{row.get('completion_tokens', 0):,} tokens")
    elif kind is SftRow:
        words += [row["mode"], *_answers(row)]
    elif kind is Group:
        words += [f"{len(row['members'])} solutions", *_answers(row)]
    elif kind is Problem:
        words += [row.get("problem_type") or row.get("category") or "-", *_answers(row)]
    text = {Problem: "problem", Group: "problem", Thread: "forum_post"}.get(kind) if kind is not None else None
    if text is not None:
        beginning = str(row[text])
    else:
        transcript = transcript_of(record)
        beginning = "" if transcript is None else transcript.text[:1000]
    head = "  ".join(printable(str(word)) for word in words)
    return f"{head}  {excerpt(beginning, max(_LEAST, width - len(head) - 2))}"


def _answers(row: dict[str, Any]) -> Iterator[str]:
    if row.get("predicted_answer") is not None:
        yield f"answer {excerpt(str(row['predicted_answer']), 20)}"
    if row.get("expected_answer") is not None:
        yield f"expected {excerpt(str(row['expected_answer']), 20)}"


def excerpt(text: str, length: int) -> str:
    """Return the beginning of a text in one line."""
    line = printable(" ".join(text[: 4 * length].split()))
    return line if len(line) <= length else line[: length - 3] + "..."


def full_text(record: StoredRecord) -> str:
    """Return a record for people: its fields, then its texts, each under the name of its author or field."""
    lines, sections = [record.id], list[tuple[str, str]]()
    lines.append(f"  {'in':<18} {record.file}:{record.row}")
    for name, value in record.fields.items():
        if name == "id":
            continue
        texts = value if isinstance(value, list) and value and all(isinstance(v, str) for v in value) else [value]
        if any(isinstance(text, str) and (len(text) > _SHORT or "\n" in text) for text in texts):
            marks = [f"{name}[{i}]" for i in range(len(texts))] if len(texts) > 1 else [name]
            sections += zip(marks, map(str, texts), strict=True)
        else:
            lines.append(f"  {name:<18} {_short(value)}")
    if (transcript := transcript_of(record)) is not None:
        if isinstance(record.transcript, Body):
            lines.append(f"  {'transcript':<18} in {record.transcript.file}")
        num_ids = sum(len(span.ids) for span in transcript.spans if span.ids is not None)
        lines.append(f"  {'token ids':<18} {f'{num_ids:,}' if num_ids else '-'}")
        sections += texts_of(transcript)
        if not transcript.finished:
            sections.append(("not finished", "the model did not end its turn"))
    for name, text in sections:
        lines += [f"--- {name}", printable(text.strip("\n"))]
    return "\n".join(lines)


def _short(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={_short(entry)}" for name, entry in value.items())
    return printable(str(value)) if not isinstance(value, bool) else str(value).lower()


def texts_of(transcript: Transcript) -> Iterator[tuple[str, str]]:
    """Yield (who: what, text) of a transcript: the messages of the prompt by role, then the segments of the answer,
    such as ``model: reasoning``."""
    for message in transcript.messages:
        yield message.role, message.content
    for segment in transcript.segments():
        by_tool = segment.kind in (Kind.OUTPUT, Kind.NOTICE)
        yield f"{Author.TOOL if by_tool else Author.MODEL}: {segment.kind}", segment.text

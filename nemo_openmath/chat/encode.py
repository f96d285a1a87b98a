"""Transcript -> token ids and the loss mask: which ids are targets of the loss.

The mask is exact for any tokenizer because it never comes from re-encoded text: every span is encoded by itself
(or brings the ids that the model generated), and an id belongs to the author of its span.

What opens a thought is decided by this tokenizer's chat template. Where it writes ``<think>`` at the end of the prompt,
a ``<think>`` in front of the transcript is left out, whoever wrote it. Where it does not, a ``<think>`` in front is
trained on, whoever wrote it. Either way there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.chat.transcript import Author, Span, Transcript
from nemo_openmath.core.tags import THINK_END, THINK_START
from nemo_openmath.core.tokenizer import RENDERED, Part


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token ids of a transcript, and which of them are targets of the loss."""

    ids: list[int]
    loss_mask: list[bool]
    """Whether ``ids[i]`` is a target of the loss. As long as ``ids``."""
    unfit: str | None = None
    """Why this tokenizer's chat template cannot have such a turn, for whoever trains; None where it can."""


def encode(transcript: Transcript, tokenizer: ChatTokenizer, *, train_on_tool_output: bool = False) -> Encoded:
    """Encode one transcript; see :func:`encode_many`."""
    return encode_many([transcript], tokenizer, train_on_tool_output=train_on_tool_output)[0]


def encode_many(
    transcripts: Sequence[Transcript], tokenizer: ChatTokenizer, *, train_on_tool_output: bool = False
) -> list[Encoded]:
    """Encode many transcripts with one pass of the tokenizer over all texts.

    - Ids of the prompt are no targets.
    - The model's spans and the end-of-turn token are targets. The tool's spans are where ``train_on_tool_output``.
    - Ids that a span brings are used as they are when they belong to this tokenizer.
    - A text that ends in its end-of-text token is finished: it gets the end-of-turn token in that one's place.

    Raises UserError where the chat template refuses the messages.
    """
    batch = _Batch(tokenizer)
    plans: list[tuple[int, list[tuple[Author, Sequence[int] | int]], bool, str | None]] = []
    for transcript in transcripts:
        prompt = tokenizer.prompt(transcript.messages)
        spans, finished, unfit = _fit(transcript, tokenizer, prompt.opening)
        if [m.role for m in transcript.messages] == [RENDERED] and unfit is None:
            unfit = None if tokenizer.knows(prompt.text) else "input is a prompt in another model's format"
        listed: list[tuple[Author, Sequence[int] | int]] = []
        for span in spans:
            if span.ids is not None:
                listed.append((span.author, span.ids))
            else:
                listed.append((span.author, batch.add(tokenizer.parts(span.text, tags=span.author is Author.MODEL))))
        plans.append((batch.add(prompt.parts), listed, finished, unfit))
    encoded = batch.encode()
    out: list[Encoded] = []
    for first, listed, finished, unfit in plans:
        ids = list(encoded[first])
        loss_mask = [False] * len(ids)
        for author, part in listed:
            span_ids = encoded[part] if isinstance(part, int) else part
            ids.extend(span_ids)
            loss_mask.extend([author is Author.MODEL or train_on_tool_output] * len(span_ids))
        if finished:
            ids.append(tokenizer.end_of_turn)
            loss_mask.append(True)
        out.append(Encoded(ids, loss_mask, unfit))
    return out


def _fit(transcript: Transcript, tokenizer: ChatTokenizer, opening: str) -> tuple[list[Span], bool, str | None]:
    """Fit a turn to this tokenizer's prompt, which ends in ``opening``.

    Returns the spans behind the prompt, without ids of another tokenizer; whether the turn is finished; and why it does
    not suit the template (None where it does)."""
    own = transcript.tokenizer == tokenizer.fingerprint
    spans = [span if own else Span(span.author, span.text) for span in transcript.spans]
    lead = spans.pop(0).text if spans and spans[0].author is Author.TEMPLATE else ""
    finished = transcript.finished
    if spans and spans[-1].author is Author.MODEL:
        spans[-1], stripped = _without_end(spans[-1], tokenizer)
        finished = finished or stripped
    if opening:
        _drop_think(spans, opening)
    else:
        _write_think(spans, lead)
    return [span for span in spans if span.text or span.ids], finished, _unfit(transcript.thinking, own, opening)


def _without_end(span: Span, tokenizer: ChatTokenizer) -> tuple[Span, bool]:
    """Take the end-of-text tokens off a span; say whether there was one."""
    if span.ids is None:
        text, stripped = tokenizer.strip_end(span.text)
        return Span(Author.MODEL, text), stripped
    ids = span.ids
    while ids and ids[-1] in tokenizer.end_ids:
        ids = ids[:-1]
    return Span(Author.MODEL, span.text, ids), len(ids) < len(span.ids)


def _write_think(spans: list[Span], lead: str) -> None:
    """Make the template's ``lead`` a text of the model, for this template writes none. A thought that the other
    template wrote and ended at once is nothing to learn."""
    if not lead or THINK_END in lead:
        return
    if spans and spans[0].author is Author.MODEL and spans[0].ids is None:
        spans[0] = Span(Author.MODEL, lead + spans[0].text)  # one text, cut into tokens as this model would write it
    else:
        spans.insert(0, Span(Author.MODEL, lead))


def _drop_think(spans: list[Span], opening: str) -> None:
    """Take the model's own ``<think>`` off, for this template writes it."""
    if not spans or spans[0].author is not Author.MODEL or spans[0].ids is not None:
        return
    text = spans[0].text.lstrip()
    if text.startswith(THINK_START):
        text = text.removeprefix(THINK_START)
        spans[0] = Span(Author.MODEL, text.removeprefix("\n") if opening.endswith("\n") else text)


def _unfit(thinking: str, own: bool, opening: str) -> str | None:
    """Return why a turn does not suit a template that ends the prompt in ``opening``; None where it does."""
    closes = THINK_END in opening
    if opening and closes and thinking == "whole":
        return "thinks, where the chat template closes the thought"
    if opening and not closes and not own and thinking == "none":
        return "does not think, where the chat template opens a thought"
    return "think tags out of order" if thinking == "broken" else None


class _Batch:
    """Texts to encode, all at once where nothing in them needs care."""

    def __init__(self, tokenizer: ChatTokenizer):
        self._tokenizer = tokenizer
        self._texts: list[Sequence[Part]] = []

    def add(self, parts: Sequence[Part]) -> int:
        """Add a text; return the number under which :meth:`encode` returns its ids."""
        self._texts.append(parts)
        return len(self._texts) - 1

    def encode(self) -> list[list[int]]:
        whole = [i for i, parts in enumerate(self._texts) if len(parts) == 1 and not parts[0][1]]
        ids = dict(zip(whole, self._tokenizer.encode_batch([self._texts[i][0][0] for i in whole]), strict=True))
        return [ids[i] if i in ids else self._tokenizer.encode_parts(parts) for i, parts in enumerate(self._texts)]

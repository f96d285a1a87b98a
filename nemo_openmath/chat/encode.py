"""Transcript -> token ids and the loss mask: which ids are targets of the loss.

The mask is exact for any tokenizer because it never comes from re-encoded text: every piece is encoded by itself
(or brings the ids that the model generated), and an id belongs to the author of its piece.

What opens a thought is decided by this tokenizer's chat template. Where it writes ``<think>`` at the end of the prompt,
a ``<think>`` in front of the transcript is left out, whoever wrote it. Where it does not, a ``<think>`` in front is
trained on, whoever wrote it. Either way there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.chat.transcript import Author, Piece, Transcript
from nemo_openmath.core.tags import THINK_END, THINK_START
from nemo_openmath.core.tokenizer import RENDERED, Part


@dataclass(frozen=True, slots=True)
class Encoded:
    """``ids[i]`` is a target of the loss where ``loss_mask[i]``. Both have the transcript's length in tokens.

    ``unfit``: why this tokenizer's chat template cannot have such a turn, for whoever trains; None where it can."""

    ids: list[int]
    loss_mask: list[bool]
    unfit: str | None = None


def encode(transcript: Transcript, tokenizer: ChatTokenizer, *, train_on_tool_output: bool = False) -> Encoded:
    """Encode one transcript; see :func:`encode_many`."""
    return encode_many([transcript], tokenizer, train_on_tool_output=train_on_tool_output)[0]


def encode_many(
    transcripts: Sequence[Transcript], tokenizer: ChatTokenizer, *, train_on_tool_output: bool = False
) -> list[Encoded]:
    """Encode many transcripts with one pass of the tokenizer over all texts.

    Prompt ids are no targets; the model's pieces and the end-of-turn token are; the runner's pieces only where
    ``train_on_tool_output``. Ids stored in a piece are used as they are when they belong to this tokenizer. A text that
    ends in its end-of-text token has ended: it gets the end-of-turn token in that one's place.
    """
    batch = _Batch(tokenizer)
    plans: list[tuple[int, list[tuple[Author, Sequence[int] | int]], bool, str | None]] = []
    for transcript in transcripts:
        prompt = tokenizer.prompt(transcript.messages)
        pieces, ended, unfit = _fit(transcript, tokenizer, prompt.opening)
        if [m.role for m in transcript.messages] == [RENDERED] and unfit is None:
            unfit = None if tokenizer.knows(prompt.text) else "input is a prompt in another model's format"
        listed: list[tuple[Author, Sequence[int] | int]] = []
        for piece in pieces:
            if piece.ids is not None:
                listed.append((piece.author, piece.ids))
            else:
                listed.append((piece.author, batch.add(tokenizer.parts(piece.text, tags=piece.author is Author.MODEL))))
        plans.append((batch.add(prompt.parts), listed, ended, unfit))
    encoded = batch.encode()
    out: list[Encoded] = []
    for first, listed, ended, unfit in plans:
        ids = list(encoded[first])
        loss_mask = [False] * len(ids)
        for author, part in listed:
            more = encoded[part] if isinstance(part, int) else part
            ids.extend(more)
            loss_mask.extend([author is Author.MODEL or train_on_tool_output] * len(more))
        if ended:
            ids.append(tokenizer.end_of_turn)
            loss_mask.append(True)
        out.append(Encoded(ids, loss_mask, unfit))
    return out


def _fit(transcript: Transcript, tokenizer: ChatTokenizer, opening: str) -> tuple[list[Piece], bool, str | None]:
    """(the pieces behind this tokenizer's prompt, ids of another tokenizer taken off; whether the turn has ended; why
    the turn does not suit the template)."""
    own = transcript.tokenizer == tokenizer.fingerprint
    pieces = [p if own else Piece(p.author, p.text) for p in transcript.pieces]
    lead = ""
    if pieces and pieces[0].author is Author.TEMPLATE:
        lead = pieces.pop(0).text
    ended = transcript.ended
    if pieces and pieces[-1].author is Author.MODEL and pieces[-1].ids is None:
        text, said = tokenizer.strip_end(pieces[-1].text)
        pieces[-1] = Piece(Author.MODEL, text)
        ended = ended or said
    elif pieces and pieces[-1].author is Author.MODEL and pieces[-1].ids is not None:
        last = pieces[-1].ids
        while last and last[-1] in tokenizer.end_ids:
            last, ended = last[:-1], True
        pieces[-1] = Piece(Author.MODEL, pieces[-1].text, last)
    empty = THINK_END in lead  # a thought that a template wrote and ended: nothing to learn
    thinking = transcript.thinking
    unfit = "think tags out of order" if thinking == "broken" else None
    first = pieces[0] if pieces and pieces[0].author is Author.MODEL else None
    if not opening:
        if lead and not empty and first is None:
            pieces.insert(0, Piece(Author.MODEL, lead))
        elif lead and not empty and first is not None:  # one text, cut into tokens as this model would write it
            same = first.ids is None
            pieces[:1] = [Piece(Author.MODEL, lead + first.text)] if same else [Piece(Author.MODEL, lead), first]
        return [p for p in pieces if p.text or p.ids], ended, unfit
    if first is not None and first.ids is None and (text := first.text.lstrip()).startswith(THINK_START):
        text = text.removeprefix(THINK_START)
        pieces[0] = Piece(Author.MODEL, text.removeprefix("\n") if opening.endswith("\n") else text)
    closed = THINK_END in opening
    if closed and thinking == "whole":
        unfit = "thinks, where the chat template closes the thought"
    elif not closed and not own and thinking == "none":
        unfit = "does not think, where the chat template opens a thought"
    return [p for p in pieces if p.text or p.ids], ended, unfit


class _Batch:
    """Texts to encode, all at once where nothing in them needs care."""

    def __init__(self, tokenizer: ChatTokenizer):
        self._tokenizer = tokenizer
        self._texts: list[Sequence[Part]] = []

    def add(self, parts: Sequence[Part]) -> int:
        """The number under which :meth:`encode` returns the ids."""
        self._texts.append(parts)
        return len(self._texts) - 1

    def encode(self) -> list[list[int]]:
        whole = [i for i, parts in enumerate(self._texts) if len(parts) == 1 and not parts[0][1]]
        found = dict(zip(whole, self._tokenizer.encode_batch([self._texts[i][0][0] for i in whole]), strict=True))
        return [found[i] if i in found else self._tokenizer.encode_parts(parts) for i, parts in enumerate(self._texts)]

"""Transcript -> token ids and the flags of the ids that are trained on.

The mask is exact for any tokenizer because it never comes from re-encoded text: every piece is encoded by itself
(or brings the ids that the model generated), and an id belongs to the author of its piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nemo_openmath.transcripts.tokenizer import ChatTokenizer
from nemo_openmath.transcripts.transcript import Author, Transcript


@dataclass(frozen=True, slots=True)
class Encoded:
    """``ids[i]`` is a target of the loss where ``trained[i]``. Both have the transcript's length in tokens."""

    ids: list[int]
    trained: list[bool]


def encode(transcript: Transcript, tokenizer: ChatTokenizer, *, train_on_tool_output: bool = False) -> Encoded:
    """Encode one transcript; see :func:`encode_many`."""
    return encode_many([transcript], tokenizer, train_on_tool_output=train_on_tool_output)[0]


def encode_many(
    transcripts: Sequence[Transcript], tokenizer: ChatTokenizer, *, train_on_tool_output: bool = False
) -> list[Encoded]:
    """Encode many transcripts with one pass of the tokenizer over all texts.

    Prompt ids are not trained; the model's pieces and the end-of-turn token are; the runner's pieces only where
    ``train_on_tool_output``. Ids stored in a piece are used as they are when they belong to this tokenizer.
    """
    texts: list[str] = []
    for transcript in transcripts:
        texts.append(tokenizer.render(transcript.messages))
        keep = transcript.tokenizer == tokenizer.fingerprint
        texts.extend(p.text for p in transcript.pieces if not (keep and p.ids is not None))
    encoded = iter(tokenizer.encode_batch(texts))
    out: list[Encoded] = []
    for transcript in transcripts:
        ids = list(next(encoded))
        trained = [False] * len(ids)
        keep = transcript.tokenizer == tokenizer.fingerprint
        for piece in transcript.pieces:
            part = piece.ids if keep and piece.ids is not None else next(encoded)
            ids.extend(part)
            trained.extend([piece.author is Author.MODEL or train_on_tool_output] * len(part))
        if transcript.ended and (not transcript.pieces or ids[-1] != tokenizer.end_of_turn):
            ids.append(tokenizer.end_of_turn)
            trained.append(True)
        out.append(Encoded(ids, trained))
    return out

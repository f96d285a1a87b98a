"""A model's own generations as token ids, and which of them are held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.chat import ChatTokenizer, Transcript, encode_many
from nemo_openmath.core.records import Generation, unit_key

CUT_OFF = "left out: max_tokens ends before what the model wrote"
EMPTY = "left out: nothing that the model wrote"
_BATCH = 1024  # generations handed to the tokenizer at once
_LOOKED_AT = 16  # the same, where few are wanted


@dataclass(frozen=True, slots=True)
class Text:
    """One generation with its prompt, as token ids."""

    ids: NDArray[np.int32]  # (tokens,)
    loss_mask: NDArray[np.bool_]  # (tokens,): whether the model itself wrote the token, not a prompt or a tool


@dataclass(frozen=True, slots=True)
class Texts:
    """The generations of a model, to train on and to measure on."""

    training: list[Text] = field(default_factory=list)
    held_out: list[Text] = field(default_factory=list)
    models: set[str] = field(default_factory=set)  # names of the models that wrote them
    counts: Counter[str] = field(default_factory=Counter)  # read, cut to ``max_tokens``, and left out, with reasons


def read_texts(
    generations: Iterable[Generation],
    tokenizer: ChatTokenizer,
    *,
    max_tokens: int,
    held_out: float,
    seed: int,
    until: Callable[[Text], bool] | None = None,
) -> Texts:
    """Return ``generations`` as token ids; those longer than ``max_tokens`` are cut at their end.

    A share ``held_out`` of the problems, chosen by ``seed`` and problem id, is kept from training with all its samples,
    so that the drafter is not measured on what it saw. With ``until``, the reading ends behind the first text to train
    on of which this is true.
    """
    texts, stream = Texts(), iter(generations)
    while batch := list(islice(stream, _BATCH if until is None else _LOOKED_AT)):
        transcripts = [Transcript.from_json(generation.transcript) for generation in batch]
        for generation, encoded in zip(batch, encode_many(transcripts, tokenizer), strict=True):
            texts.counts["generations"] += 1
            texts.models.add(generation.model)
            loss_mask = np.array(encoded.loss_mask[:max_tokens], bool)
            if not loss_mask[2:].any():  # the first guess is two tokens after the state that it is made from
                texts.counts[CUT_OFF if any(encoded.loss_mask[2:]) else EMPTY] += 1
                continue
            texts.counts["cut to max_tokens"] += len(encoded.ids) > max_tokens
            text = Text(np.array(encoded.ids[:max_tokens], np.int32), loss_mask)
            if unit_key(f"{seed} {generation.problem_id}") < held_out * 2**64:
                texts.held_out.append(text)
                continue
            texts.training.append(text)
            if until is not None and until(text):
                return texts
    return texts


def drafts_taught(texts: Iterable[Text], draft_ids: NDArray[np.int64] | None = None) -> int:
    """Return how many drafts of a step, from the first one on, have a token to learn in ``texts``: draft i guesses
    token t+1+i from the state at token t. ``draft_ids``: the tokens that can be guessed; None: all."""
    last = 0
    for text in texts:
        is_target = text.loss_mask if draft_ids is None else text.loss_mask & np.isin(text.ids, draft_ids)
        last = max(last, int(np.flatnonzero(is_target).max(initial=0)))
    return max(0, last - 1)


def frequent_tokens(texts: Sequence[Text], count: int, vocab: int) -> NDArray[np.int64] | None:
    """Return the ``count`` tokens that the model wrote most in ``texts``, ascending; fewer where it wrote no more.

    None stands for all of the ``vocab`` tokens: where ``count`` is 0, or not below it. Of equally frequent tokens the
    lower id is taken.
    """
    if not 0 < count < vocab:
        return None
    written = np.zeros(vocab, np.int64)
    for text in texts:
        np.add.at(written, text.ids[text.loss_mask], 1)
    order = np.argsort(-written, kind="stable")[: min(count, int(np.count_nonzero(written)))]
    return np.sort(order)


def some_texts(texts: Sequence[Text], most_tokens: int, seed: int) -> list[NDArray[np.int32]]:
    """Return what the model wrote in some of the texts, without their prompts, of at most ``most_tokens`` tokens
    together; ``seed`` chooses them."""
    chosen: list[NDArray[np.int32]] = []
    for i in np.random.default_rng([seed, 2]).permutation(len(texts)):
        text = texts[i].ids[int(texts[i].loss_mask.argmax()) :]
        if len(text) <= most_tokens:
            chosen.append(text)
            most_tokens -= len(text)
    return chosen

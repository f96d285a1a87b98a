"""What a stored generation would have been under a smaller token limit.

A limit counts the tokens behind the prompt, those of the model and those of the outputs of its code, as
``max_tokens`` of a generation does (inference/rollout/loop.py). A generation of no more tokens is what it was. A longer
one is cut there and unfinished: the tokens before the limit would have been the same.

Whether it is longer is known from its counts alone, and so is its verdict. Two things need its token ids:

- How many of the tokens before the limit are the model's, and how many blocks of code ran, where it ran code.
- Its text up to the limit, in which an answer may be looked for. That needs the tokenizer, too.

What cannot be known is refused by name, or said to be unknown; nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nemo_openmath.chat import Author, Span, Transcript
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation
from nemo_openmath.core.tokenizer import Tokenizer

_FULL = (Finish.LENGTH, Finish.REPETITION)
_TOKENIZER = "give tokenizer: FOLDER of the model that generated it"
_REGENERATE = "generate with keep_ids: always to be able to cut solutions, or leave out unfinished_answers"


@dataclass(frozen=True, slots=True)
class Limited:
    """A generation under a limit."""

    generation: Generation
    cut: bool = False
    """Whether the limit ended it."""
    counts_known: bool = True
    """Whether its counts of tokens and calls are exact. Otherwise they are bounds from above."""


@dataclass(frozen=True, slots=True)
class LongestKnown:
    """The most tokens that the model wrote in one generation, by (model, mode): its limit was no smaller."""

    tokens: dict[tuple[str, str], int]

    @classmethod
    def of(cls, generations: Iterable[Generation]) -> LongestKnown:
        """Look at all generations."""
        tokens: dict[tuple[str, str], int] = {}
        for g in generations:
            key = (g.model, str(g.mode))
            tokens[key] = max(tokens.get(key, 0), g.completion_tokens)
        return cls(tokens)

    def reaches(self, generation: Generation, limit: int) -> bool:
        """Return whether generations like this one are known to have been given that many tokens."""
        return self.tokens.get((generation.model, str(generation.mode)), 0) >= limit


def limited(
    generation: Generation, limit: int, longest: LongestKnown, tokenizer: Tokenizer | None = None, *, text: bool = False
) -> Limited:
    """Return a generation as it would have been with at most ``limit`` tokens behind its prompt.

    ``text``: its transcript is cut, too, by ``tokenizer``. Raises UserError naming a generation of which this cannot be
    known.
    """
    if not generation.tried:
        return Limited(generation)
    total = generation.completion_tokens + generation.runner_tokens
    if not generation.completion_tokens and Transcript.from_json(generation.transcript, ids=False).said.strip():
        raise _unknown(generation, "does not say how many tokens it has", "leave it out, or leave out the token limit")
    if total <= limit:
        if generation.finish in _FULL and total < limit and not longest.reaches(generation, limit):
            raise _unknown(
                generation,
                f"was cut after {total:,} tokens, and nobody knows how it would have gone on to {limit:,}",
                f"choose a limit of at most {max(total, 1)}",
            )
        return Limited(generation)
    has_code = bool(generation.code_calls or generation.runner_tokens)
    if not text and not has_code:
        return Limited(generation.with_(finish=Finish.LENGTH, completion_tokens=limit), cut=True)
    transcript = Transcript.from_json(generation.transcript)
    if (why := _why_unknown(generation, transcript)) is not None:
        if text:
            raise _unknown(generation, why, _REGENERATE)
        bound = min(generation.completion_tokens, limit)
        return Limited(generation.with_(finish=Finish.LENGTH, completion_tokens=bound), cut=True, counts_known=False)
    if text and tokenizer is None:
        raise _unknown(generation, "is cut within its text, and no tokenizer is given", _TOKENIZER)
    return _cut(generation, transcript, limit, tokenizer if text else None)


def _why_unknown(generation: Generation, transcript: Transcript) -> str | None:
    """Return why the place of each token is not known; None where it is."""
    written = [span for span in transcript.spans if span.author is not Author.TEMPLATE]
    if any(span.ids is None for span in written):
        return "has no token ids, so nobody knows where the limit cuts it"
    tokens, calls = {Author.MODEL: 0, Author.TOOL: 0}, 0
    for span in written:
        tokens[span.author] += len(span.ids or ())
        calls += span.author is Author.TOOL
    ends = generation.completion_tokens - tokens[Author.MODEL]  # the end-of-turn token is counted and not kept
    if ends not in (0, int(generation.finish is Finish.STOP)) or tokens[Author.TOOL] != generation.runner_tokens:
        return "has other token ids than those that were counted (text was taken out of it)"
    return None if calls == generation.code_calls else "has another number of outputs than of calls"


def _cut(generation: Generation, transcript: Transcript, limit: int, tokenizer: Tokenizer | None) -> Limited:
    """Walk through the spans as the rollout would have: the model is stopped at the limit, and the output of code that
    it called before stands whole."""
    spans: list[Span] = []
    tokens = {Author.MODEL: 0, Author.TOOL: 0}
    is_cut = False
    for span in transcript.spans:
        number = 0 if span.author is Author.TEMPLATE else len(span.ids or ())
        room = limit - sum(tokens.values())
        if span.author is not Author.TOOL and number > room:
            if room > 0:
                spans.append(_beginning(generation, span, room, tokenizer))
                tokens[Author.MODEL] += room
            is_cut = True
            break
        spans.append(span)
        if number:
            tokens[span.author] += number
    # All that was kept fits: behind the limit lies the end-of-turn token, or nothing but the rest of an output.
    if not is_cut and generation.finish in _FULL:
        return Limited(generation)
    new = generation.with_(
        finish=Finish.LENGTH,
        completion_tokens=tokens[Author.MODEL],
        runner_tokens=tokens[Author.TOOL],
        code_calls=sum(span.author is Author.TOOL for span in spans),
    )
    if tokenizer is not None:
        new = new.with_(transcript=replace(transcript, spans=tuple(spans), finished=False).to_json())
    return Limited(new, cut=True)


def _beginning(generation: Generation, span: Span, number: int, tokenizer: Tokenizer | None) -> Span:
    """Return the first ``number`` tokens of a span; its whole text where there is no tokenizer, and nobody reads it."""
    ids = tuple(span.ids or ())
    if tokenizer is None:
        return Span(span.author, span.text, ids[:number])
    whole, text = tokenizer.decode(ids), tokenizer.decode(ids[:number]).rstrip("\ufffd")  # half of a character
    space = " " * (whole != span.text)  # some tokenizers leave out the first one
    if space + whole != span.text or not span.text.startswith(space + text):
        raise _unknown(generation, "has a text that its token ids do not decode to", _TOKENIZER)
    return Span(span.author, space + text, ids[:number])


def _unknown(generation: Generation, problem: str, remedy: str) -> UserError:
    return UserError(f"generation {generation.id} {problem}", remedy=remedy)

"""The discussion of a thread as its posts: cut apart, joined, and cut to a number of tokens.

A discussion is one text, as published: "Post 1:\\n...", an empty line, "Post 2:\\n...", and so on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nemo_openmath.core.tokenizer import Tokenizer

_HEADER = re.compile(r"Post (?<![^\n]Post )([0-9]{1,9}):[ \t]*(?:\r?\n|\Z)")  # at the beginning of a line
_QUOTE = re.compile(r"\[(/?)quote\]")
_GAP = "\n\n"
_EARLIER = "the first post, quoted above"


def posts(discussion: str) -> list[str]:
    """Return the posts of a discussion, without their headers and the white space around them.

    Posts are numbered one after the other: a line "Post 7:" within post 2 is text of that post. A text that begins with
    no header is one post; an empty one is none.
    """
    discussion = discussion.strip()
    first = _HEADER.match(discussion)
    if first is None:
        return [discussion] if discussion else []
    starts, number = [first.span()], int(first[1])
    for header in _HEADER.finditer(discussion, first.end()):
        if int(header[1]) == number + 1:
            starts.append(header.span())
            number += 1
    ends = [start for start, _ in starts[1:]] + [len(discussion)]
    return [discussion[start:end].strip() for (_, start), end in zip(starts, ends, strict=True)]


def joined(texts: Sequence[str]) -> str:
    """Return posts as one discussion, numbered from 1. A line of a post that looks like a header is moved by a space:
    :func:`posts` gives back these posts."""
    return _GAP.join(f"Post {number}:\n{_HEADER.sub(_moved, text.strip())}" for number, text in enumerate(texts, 1))


def _moved(header: re.Match[str]) -> str:
    return f" {header[0]}"


def without_repeats(first: str, replies: Sequence[str]) -> list[str]:
    """Return the replies without those that are the first post again, white space aside. What quotes all of the first
    post keeps the quote where it is the first one to do so; further ones say that it stands above.

    Quotes are marked ``[quote]``, ``[/quote]`` (markup.py); those that hold another quote stay as they are.
    """
    first = " ".join(first.split())
    kept = [reply for reply in replies if " ".join(reply.split()) != first]
    quoted = False
    for at, reply in enumerate(kept):
        if "[quote]" not in reply:
            continue
        parts: list[str] = []
        end, opened = 0, None
        for tag in _QUOTE.finditer(reply):
            if not tag[1]:
                opened = tag.end()
            elif opened is not None:
                if " ".join(reply[opened : tag.start()].split()) == first:
                    if quoted:
                        parts += [reply[end:opened], _EARLIER]
                        end = tag.start()
                    quoted = True
                opened = None
        kept[at] = "".join([*parts, reply[end:]])
    return kept


@dataclass(frozen=True, slots=True)
class CutDiscussion:
    """A discussion that is no longer than it may be."""

    text: str
    """Its posts, as :func:`joined` joins them."""
    num_posts: int
    """Posts that are in the text."""
    num_left_out: int
    """Posts behind them that are not."""
    within: bool
    """Whether the first post alone was too long, and was cut within."""

    @property
    def whole(self) -> bool:
        """Whether nothing was cut."""
        return not (self.num_left_out or self.within)


def cut(texts: Sequence[str], tokens: int, tokenizer: Tokenizer) -> CutDiscussion:
    """Return the first posts of a discussion, as many as ``tokens`` hold (at least 1).

    It is cut in front of a post. Where the first post alone is longer than that, it is cut within: behind a line where
    there is one, or at a token. Tokens are counted for each post with its header.
    """
    text = joined(texts)
    if len(text.encode(errors="replace")) <= tokens:  # a token is a byte or more
        return CutDiscussion(text, len(texts), 0, False)
    left = tokens
    blocks: list[str] = []
    for number, post in enumerate(texts, 1):
        block = f"Post {number}:\n{_HEADER.sub(_moved, post.strip())}"
        gap = _GAP if blocks else ""
        ids = tokenizer.encode_text((gap + block)[: 32 * (left + 1)])
        if len(ids) > left or 32 * (left + 1) < len(gap + block):
            if blocks:
                break
            return CutDiscussion(_within(tokenizer.decode(ids[:left])), 1, len(texts) - 1, True)
        left -= len(ids)
        blocks.append(block)
    return CutDiscussion(_GAP.join(blocks), len(blocks), len(texts) - len(blocks), False)


def _within(text: str) -> str:
    """Return a text that breaks off without its last, partial line; a text of one line without a partial character."""
    head, newline, _ = text.rpartition("\n")
    return head.rstrip() if newline and "\n" in head else text.rstrip("\ufffd")

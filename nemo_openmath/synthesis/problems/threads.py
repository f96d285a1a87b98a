"""Read forum threads of any file: columns by a map, markup normalised, forums and languages chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Literal

from nemo_openmath.core.bounds import PositiveInt, Words
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Drop, Thread
from nemo_openmath.core.records.readers import name_of
from nemo_openmath.core.stage import Result, StageContext
from nemo_openmath.synthesis.problems.labelled import ROW, known_problems
from nemo_openmath.synthesis.problems.language import Language, may_be_in
from nemo_openmath.synthesis.problems.markup import normalised
from nemo_openmath.synthesis.problems.posts import joined, posts, without_repeats
from nemo_openmath.synthesis.problems.read import FORUM, ReadFiles, ReadFilesConfig

POST, REPLIES = "forum_post", "forum_discussions"
LEFT_OUT = "replies_left_out"
"""The key in ``extra`` of how many replies were left out because the discussion is too long."""


@dataclass(frozen=True)
class ReadThreadsConfig(ReadFilesConfig):
    """Settings of ``problems.read_threads``."""

    max_chars: PositiveInt = 100_000
    """Posts of more characters, markup included, are dropped and counted."""
    max_discussion_chars: PositiveInt = 500_000
    """Discussions of more characters are cut in front of a post; ``replies_left_out`` in the thread's ``extra`` says
    how many posts that left out. Stages that ask about a discussion cut it to tokens."""
    columns: dict[str, str] = field(default_factory=dict)
    """The names of the columns in the files: ``{forum_post: text, forum_discussions: replies, problem_source:
    section}``. A column that is not named here has its published name."""
    reply_text: str = "text"
    """Where a discussion is a list of objects: the field of an object that is the reply's text."""
    markup: Literal["normalise", "keep"] = "normalise"
    """``normalise``: BBCode and HTML become plain text, quotes and pictures are marked, and what repeats the first post
    is left out of the replies. ``keep``: texts stay as they are."""
    sources: Annotated[tuple[str, ...], Words()] = ()
    """Only threads of forums whose name contains one of these words, in any case; none: of all forums."""
    not_sources: Annotated[tuple[str, ...], Words()] = ()
    """No threads of forums whose name contains one of these words, in any case. The paper leaves Middle School Math out
    (section 2.1)."""
    languages: tuple[Language, ...] = ()
    """Only first posts that are, or may be, in one of these languages; none: of all languages. Posts of which a simple
    rule cannot tell the language are kept."""

    def __post_init__(self) -> None:
        if unknown := self.columns.keys() - {POST, REPLIES, FORUM}:
            raise ValueError(
                f"columns: {sorted(unknown)[0]!r} is no column of threads; there are {POST}, {REPLIES}, {FORUM}"
            )
        if len(set(self.columns.values())) < len(self.columns):
            raise ValueError("columns: one column is named twice")


class ReadThreads(ReadFiles[ReadThreadsConfig]):
    """Read raw forum rows: a first post and the replies to it, as one text or as a list. Other columns travel along in
    ``extra``. ``problem_source``, where there is one, names the forum, and becomes the source of the thread's problems.
    ``file_row`` in ``extra`` says where the raw text stands. Equal threads are one.
    """

    kind = "problems.read_threads"
    version = 3  # 2: other fields are kept. 3: markup is normalised, file_row
    record = Thread
    Config = ReadThreadsConfig

    def __init__(self, config: ReadThreadsConfig):
        super().__init__(config)
        self.column, self._replies, self._source = (config.columns.get(n, n) for n in (POST, REPLIES, FORUM))
        self._unseen = set(config.columns.values())

    async def prepare(self, context: StageContext) -> None:
        await super().prepare(context)
        if self._unseen:
            row = next((v for _, (_, _, v) in islice(self._rows(context), 100) if isinstance(v, dict)), {})
            raise UserError(
                f"no row has the column {sorted(self._unseen)[0]!r}",
                file=context.paths("files")[0],
                remedy=f"name one of its columns in `columns`: {', '.join(map(repr, row))}",
            )

    def problem(self, row: dict[str, Any]) -> str | None:
        self._unseen -= row.keys()
        if problem := _not_replies(row.get(self._replies), self.config.reply_text):
            return f"{self._replies!r} {problem}"
        if (source := row.get(self._source)) is not None and not isinstance(source, str):
            return f"{self._source!r} is {name_of(source)}, not a text"
        return super().problem(row)

    def make(self, row: dict[str, Any], where: str) -> Result:
        config, post = self.config, row[self.column]
        if len(post) > config.max_chars:
            return Result(drops=[Drop("post too long", f"{where}: {len(post)} characters")])
        if reason := self._reason_of_source((row.get(self._source) or "").lower()):
            return Result(drops=[Drop(reason, f"{where}: {post}")])
        clean = config.markup == "normalise"
        if not (post := normalised(post) if clean else post).strip():
            return Result(drops=[Drop("empty post", where)])
        if config.languages and not may_be_in(post, config.languages):
            return Result(drops=[Drop("a post in another language", f"{where}: {post}")])
        replies = _texts(row.get(self._replies), config.reply_text)
        if clean:
            replies = without_repeats(post, [text for reply in replies if (text := normalised(reply))])
        short = _first(replies, config.max_discussion_chars)
        given = (self.column, self._replies, self._source)
        extra = {name: value for name, value in row.items() if name not in given}
        if row.get(self._source) is not None:
            extra[FORUM] = row[self._source]
        extra |= {LEFT_OUT: len(replies) - len(short)} if short != replies else {}
        discussion = joined(short)
        if not clean and isinstance(row.get(self._replies), str) and len(short) == len(replies):
            discussion = row[self._replies]
        thread = Thread.make(post, discussion).with_(extra={**extra, ROW: where})
        known_problems(thread)  # a label that is none is refused now, not behind all that asks a model
        return Result([thread])

    def _reason_of_source(self, source: str) -> str | None:
        if self.config.sources and not any(word.lower() in source for word in self.config.sources):
            return "another forum"
        return "a forum that is left out" if any(w.lower() in source for w in self.config.not_sources) else None


def _not_replies(value: Any, field: str) -> str | None:
    """Return what keeps a value from being a discussion, in words; None where nothing does."""
    if value is None or isinstance(value, str):
        return None
    if not isinstance(value, list):
        return f"is {name_of(value)}, neither a text nor a list of replies"
    for number, reply in enumerate(value, 1):
        if isinstance(reply, dict):
            if field not in reply:
                known = ", ".join(map(repr, list(reply)[:12])) or "no fields"
                return f"has a reply {number} without {field!r}; it has {known}: set `reply_text`"
            reply = reply[field]
        if reply is not None and not isinstance(reply, str):
            return f"has a reply {number} that is {name_of(reply)}, not a text"
    return None


def _texts(value: Any, field: str) -> list[str]:
    """Return the replies of a discussion, empty ones left out."""
    if value is None or isinstance(value, str):
        return posts(value or "")
    texts = (reply[field] if isinstance(reply, dict) else reply for reply in value)
    return [text for text in texts if text and text.strip()]


def _first(replies: Sequence[str], chars: int) -> list[str]:
    """Return the first replies, at most ``chars`` characters of them; one that alone is longer is cut."""
    length = 0
    for number, reply in enumerate(replies):
        length += len(reply) + len(f"\n\nPost {number + 1}:\n")
        if length > chars:
            return [*replies[:number]] if number else [reply[:chars]]
    return [*replies]

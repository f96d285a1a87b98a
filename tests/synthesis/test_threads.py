"""Forum threads: their columns, replies, forums and languages; what is left out is said."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nemo_openmath.chat import ChatTokenizer, Message, Transcript
from nemo_openmath.core.engine import Finish
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Drop, Generation, Mode, Thread, read_drops, read_records
from nemo_openmath.data.rows.selection import Choice
from nemo_openmath.data.rows.stages import SelectConfig, SelectRows
from nemo_openmath.synthesis.problems.extract import Extract
from nemo_openmath.synthesis.problems.language import may_be_in
from nemo_openmath.synthesis.problems.posts import cut, joined, posts, without_repeats
from nemo_openmath.synthesis.problems.threads import ReadThreads
from nemo_openmath.synthesis.solutions.rows import MakeRows, RowsConfig
from tests.support.services import run_stage
from tests.support.tokenizers import byte_level
from tests.synthesis.test_read import run


def read(folder: Path, *rows: dict[str, Any], **settings: Any) -> tuple[list[Thread], list[Drop]]:
    """Read rows; return the threads in the order of the rows, and the drops."""
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(ReadThreads, folder / "out", folder / "t.jsonl", **settings)
    threads = sorted(read_records(folder / "out", Thread), key=lambda thread: thread.extra["file_row"])
    return threads, [drop for _, drop in read_drops(folder / "out")]


def test_a_thread_says_where_its_raw_text_stands_and_keeps_its_other_columns(tmp_path: Path) -> None:
    row = {"forum_post": "[b]Find[/b] x.\r\n", "forum_discussions": "Post 1:\nx \\equal{} 1\n\nPost 2:\n[b]y[/b]"}
    (thread,), _ = read(tmp_path, row | {"problem_source": "olympiads", "id": 7})
    assert thread.forum_post == "Find x."
    assert thread.forum_discussions == "Post 1:\nx = 1\n\nPost 2:\ny"
    assert thread.extra == {"problem_source": "olympiads", "id": 7, "file_row": "t.jsonl:1"}


def test_texts_can_be_kept_as_they_are(tmp_path: Path) -> None:
    row = {"forum_post": " [b]x[/b]", "forum_discussions": "Post 1:\r\n[b]y"}
    (thread,), _ = read(tmp_path, row, markup="keep")
    assert (thread.forum_post, thread.forum_discussions) == (" [b]x[/b]", "Post 1:\r\n[b]y")


def test_columns_have_any_name_and_replies_are_texts_or_objects(tmp_path: Path) -> None:
    columns = {"forum_post": "text", "forum_discussions": "replies", "problem_source": "section"}
    rows = [
        {"text": "a", "replies": ["b", "[b]c[/b]", " ", None], "section": "algebra"},
        {"text": "d", "replies": [{"body": "e", "by": 3}], "forum_post": "other"},
        {"text": "f", "replies": None},
    ]
    threads, _ = read(tmp_path, *rows, columns=columns, reply_text="body")
    assert [t.forum_discussions for t in threads] == ["Post 1:\nb\n\nPost 2:\nc", "Post 1:\ne", ""]
    assert [t.extra.get("problem_source") for t in threads] == ["algebra", None, None]
    assert threads[1].extra["forum_post"] == "other"


@pytest.mark.parametrize(
    ("row", "settings", "says"),
    [
        ({"text": "a"}, {"columns": {"forum_post": "post"}}, r"t\.jsonl:1: no 'post'; the row has 'text'"),
        (
            {"forum_post": "a"},
            {"columns": {"problem_source": "topic"}},
            r"no row has the column 'topic'; .*'forum_post'",
        ),
        ({"forum_post": "a"}, {"columns": {"post": "x"}}, "'post' is no column of threads; there are forum_post, "),
        ({"forum_post": "a", "forum_discussions": 3}, {}, "'forum_discussions' is a number, neither a text nor a list"),
        ({"forum_post": "a", "forum_discussions": ["b", 3]}, {}, "has a reply 2 that is a number, not a text"),
        (
            {"forum_post": "a", "forum_discussions": [{"body": "b"}]},
            {},
            "reply 1 without 'text'; it has 'body': set `re",
        ),
        ({"forum_post": "a", "problem_source": 3}, {}, "'problem_source' is a number"),
    ],
)
def test_a_column_that_is_wrong_is_named(tmp_path: Path, row: Any, settings: Any, says: str) -> None:
    with pytest.raises((UserError, ValueError), match=says):
        read(tmp_path, row, **settings)


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("x", "known_problems is not a list"),
        ([{"category": "proof"}], "known_problems has an entry without the text 'problem'"),
        ([{"problem": "p", "categry": "proof"}], "known_problems has an unknown field 'categry'"),
        ([{"problem": "p", "category": "riddle"}], "known_problems has category 'riddle'; known: "),
        ([{"problem": "p", "expected_answer": ["2"]}], r"known_problems has expected_answer \['2'\], which is no text"),
        ([{"problem": "p", "in_benchmark": "no"}], "known_problems has in_benchmark 'no'; write true or false"),
    ],
)
def test_a_label_that_is_none_is_refused_by_file_and_row(tmp_path: Path, label: Any, says: str) -> None:
    """As threads are read: before any model is asked about them."""
    right = {"forum_post": "What is 1 + 1?", "known_problems": [{"problem": "What is 1 + 1?", "expected_answer": 2}]}
    with pytest.raises(UserError, match=r"t\.jsonl:2: " + says):
        read(tmp_path, right, {"forum_post": "What is 2 + 2?", "known_problems": label})


def test_what_is_left_out_is_counted_with_its_reason(tmp_path: Path) -> None:
    rows = [
        {"forum_post": "Find x.", "problem_source": "High School Olympiads"},
        {"forum_post": "Find y.", "problem_source": "Middle School Math"},
        {"forum_post": "Докажите, что сумма углов треугольника равна 180 градусам."},
        {"forum_post": "[b]\u200b[/b]"},
        {"forum_post": "x" * 200_000},
    ]
    threads, drops = read(tmp_path, *rows, not_sources=("middle school",), languages=("en",))
    assert [t.forum_post for t in threads] == ["Find x."]
    assert sorted(drop.reason for drop in drops) == [
        "a forum that is left out",
        "a post in another language",
        "empty post",
        "post too long",
    ]


def test_a_thread_of_thousands_of_posts_is_cut_in_front_of_a_post(tmp_path: Path) -> None:
    row = {"forum_post": "x", "forum_discussions": joined(["reply"] * 5000)}
    (thread,), _ = read(tmp_path, row, max_discussion_chars=10_000)
    assert len(thread.forum_discussions) <= 10_000
    assert len(posts(thread.forum_discussions)) == 5000 - thread.extra["replies_left_out"]


def test_posts_are_split_at_their_own_headers_alone() -> None:
    assert posts("") == posts(" \n") == []
    assert posts("no header\nPost 2:\n") == ["no header\nPost 2:"]
    assert posts("Post 1:\r\na\n\nPost 7:\nof a\n\nPost 2:\nb\n\nPost 3:") == ["a\n\nPost 7:\nof a", "b", ""]
    texts = ["a\n\nPost 2:\nno post", "Post 3:\nb", "", "c"]
    assert [" ".join(text.split()) for text in posts(joined(texts))] == [" ".join(text.split()) for text in texts]


def test_the_first_post_is_quoted_once() -> None:
    first = "Find x\nand y."
    replies = ["Find x and y.", f"[quote]{first}[/quote]\n3", "[quote]Find x  and y.[/quote] 4", "[quote]3[/quote] 5"]
    assert without_repeats(first, replies) == [
        f"[quote]{first}[/quote]\n3",
        "[quote]the first post, quoted above[/quote] 4",
        "[quote]3[/quote] 5",
    ]


def test_a_discussion_is_cut_to_tokens_in_front_of_a_post(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(byte_level(tmp_path, entries=259))  # a token a byte
    texts = ["a" * 20, "b" * 20, "c" * 20]
    assert cut(texts, 1000, tokenizer).whole
    short = cut(texts, 70, tokenizer)
    assert (short.text, short.num_posts, short.num_left_out) == (joined(texts[:2]), 2, 1)
    assert len(tokenizer.encode_text(short.text)) <= 70
    within = cut(["first line\n" + "x" * 100], 30, tokenizer)
    assert (within.text, within.num_left_out, within.within) == ("Post 1:\nfirst line", 0, True)


@pytest.mark.parametrize(
    ("post", "english"),
    [
        ("Let ABC be a triangle. Prove that it is right.", True),
        ("Let α, β, γ be the angles of ABC; x = y, y = e, o = a", True),
        ("$x^2+1$", True),
        ("Calculer $x$", True),  # too short to tell
        ("From the Chinese TST: 设函数. Let f be a function such that the sum of the values is 1.", True),
        ("设函数 f(x)=x^2,求最大值。", False),
        ("Montrer que la somme des angles est égale à 180 pour tous les triangles ABC.", False),
        ("Demostrar que la suma de los ángulos es 180 para todos los triángulos.", False),
        ("Zeige, dass die Summe der Winkel 180 ist und dass das für alle gilt.", False),
    ],
)
def test_posts_that_are_certainly_in_another_language_are_told(post: str, english: bool) -> None:
    assert may_be_in(post, ("en",)) is english


async def test_the_forum_of_a_thread_chooses_its_training_rows(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    sections = ("High School Olympiads", "College Math")
    rows = [{"text": f"[b]Find {name[0]}.[/b]", "section": name} for name in sections]
    columns = {"forum_post": "text", "problem_source": "section"}
    threads, _ = await asyncio.to_thread(read, tmp_path, *rows, columns=columns)
    extracted = await run_stage(
        Extract(Extract.Config()),
        tmp_path / "e",
        lambda question: "Problem 1: Find H." if "Find H." in question else "Problem 1: Find C.",
        tokenizer=tokenizer,
        threads=threads,
    )
    assert sorted(p.source for p in extracted.records) == sorted(sections)
    generations = [
        Generation(
            id=f"generation-{n}", problem_id=p.id, mode=Mode.COT, model="m", sample=0, finish=Finish.STOP,
            transcript=Transcript.from_text((Message("user", p.problem),), "\\boxed{1}").to_json(),
        )
        for n, p in enumerate(extracted.records)
    ]  # fmt: skip
    made = await run_stage(MakeRows(RowsConfig()), tmp_path / "r", generations=generations, problems=extracted.records)
    select = SelectRows(SelectConfig(Choice(sources=("olympiad",)), None))
    chosen = await run_stage(select, tmp_path / "s", rows=made.records)
    assert [row.problem_source for row in chosen.records] == ["High School Olympiads"]
    assert chosen.reasons == ["other problem source"]

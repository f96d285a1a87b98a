"""What a run warns about as a stage ends: replies that the prompt's form does not fit, and controls, each said once."""

import logging
from pathlib import Path

import orjson
import pytest

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.recipe.command import open_run, report, run_recipe
from nemo_openmath.recipe.selection import StageSelection
from tests.support.engines import MODEL, Reply, ScriptedServer

UNREAD = "units were dropped for one reason, 'the reply "


async def run_posts(
    folder: Path, tokenizer: ChatTokenizer, *, units: int, unread: int, reply: str | Reply = "Hm.", stage: str = ""
) -> None:
    """Extract problems from so many posts; about the first ones the model says ``reply``."""
    posts = [f"Find the number of divisors of {7 * number + 1000}." for number in range(units)]
    replies = {post: f"Problem 1: {post}" if number >= unread else reply for number, post in enumerate(posts)}
    (folder / "forum.jsonl").write_bytes(b"\n".join(orjson.dumps({"forum_post": post}) for post in posts))
    (folder / "r.yaml").write_text(
        "name: r\nstages:\n  threads: {run: problems.read_threads, from: ./forum.jsonl}\n"
        f"  extracted: {{run: problems.extract, from: threads, engine: teacher, attempts: 1{stage}}}\n"
    )

    def answer(question: str) -> str | Reply:
        return next((said for post, said in replies.items() if post in question), "Problem 1: Something else.")

    async with ScriptedServer(answer) as server:
        words = [f"teacher.url={server.url}", f"teacher.model={MODEL}", f"teacher.tokenizer={tokenizer.folder}"]
        words += ["teacher.api=chat", "teacher.server=openai"]
        await run_recipe(folder / "r.yaml", words, folder / "out", StageSelection())


@pytest.mark.parametrize(
    ("units", "unread", "reply", "said"),
    [
        (12, 7, "Hm.", "extracted: 7 of 12 units were dropped for one reason, 'the reply "),
        (12, 7, Reply("Problem 1: Find", finish="length"), "'the reply did not come to its end'"),
        (12, 6, "Hm.", ""),  # a half is not more than a half
        (9, 8, "Hm.", ""),  # of so few
        (12, 7, "No problem", ""),  # an answer of the model, not a form that it missed
    ],
)
async def test_more_than_half_of_the_replies_unread_is_said(
    units: int,
    unread: int,
    reply: str | Reply,
    said: str,
    tmp_path: Path,
    tokenizer: ChatTokenizer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        await run_posts(tmp_path, tokenizer, units=units, unread=unread, reply=reply)
    assert caplog.text.count(UNREAD) == bool(said)
    assert said in caplog.text


async def test_controls_are_warned_about_once_a_command(
    tmp_path: Path, tokenizer: ChatTokenizer, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the stage ends, and not again in the lines about the report; a later command says it again."""
    bank = tmp_path / "cases.jsonl"
    case = {"stage": "problems.extract", "id": "mine", "forum_post": "What is 3 + 4?", "problems": ["What is 3 + 4?"]}
    bank.write_bytes(orjson.dumps(case) + b"\n")
    with caplog.at_level(logging.WARNING):
        await run_posts(
            tmp_path, tokenizer, units=4, unread=0, stage=f", controls: 1, control_cases: {bank}, control_bound: 0.9"
        )
    sentence = "extracted: sensitivity for 'problem' is 0.0%"
    assert caplog.text.count(sentence) == 1
    assert sentence not in " ".join(capsys.readouterr().out.split())
    report(open_run(tmp_path / "out"))
    assert " ".join(capsys.readouterr().out.split()).count(sentence) == 1

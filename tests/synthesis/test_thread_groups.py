"""Threads that are there twice: equal posts are one, similar ones are marked and never merged."""

from pathlib import Path

import pytest

from nemo_openmath.core.errors import MissingExtra
from nemo_openmath.core.records import Thread
from nemo_openmath.synthesis.problems.thread_groups import GroupThreads, GroupThreadsConfig
from tests.support.services import run_stage

POST = "Let a and b be positive integers whose sum is 100. Find the largest possible value of the product a times b."


async def test_equal_posts_are_one_thread_that_stands_for_all(tmp_path: Path) -> None:
    threads = [
        Thread.make("Find  x."),
        Thread.make("Find x.", "Post 1:\nIt is 3."),
        Thread.make("Find\nx.", "Post 1:\n?"),
        Thread.make("Find y."),
        Thread.make("find x."),
    ]
    outcome = await run_stage(GroupThreads(GroupThreadsConfig()), tmp_path, threads=threads)
    parents = {thread.forum_post: thread.parents for thread in outcome.records}
    others = tuple(sorted([threads[0].id, threads[2].id]))
    assert parents == {"Find x.": others, "Find y.": (), "find x.": ()}
    assert outcome.reasons == ["the same post as another thread"] * 2
    assert all(drop.detail.startswith(threads[1].id) for _, drop in outcome.drops)


async def test_posts_that_differ_in_a_number_are_marked_and_both_stay(tmp_path: Path) -> None:
    pytest.importorskip("datasketch")
    texts = [
        POST,
        POST.replace("100", "101"),
        f"Hi! {POST} Thanks!",
        "Prove that there are infinitely many primes.",
        "?",
    ]
    threads = [Thread.make(text) for text in texts]
    outcome = await run_stage(GroupThreads(GroupThreadsConfig(near=0.8)), tmp_path, threads=threads)
    assert not outcome.drops
    groups = {thread.forum_post: thread.extra.get("near_group") for thread in outcome.records}
    assert groups == dict.fromkeys(texts[:3], min(thread.id for thread in threads[:3])) | dict.fromkeys(texts[3:])
    assert outcome.context.metrics == {"near_groups": 1, "threads_in_near_groups": 3}


async def test_the_extra_is_named_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasketch", None)
    GroupThreads(GroupThreadsConfig()).check({})
    with pytest.raises(MissingExtra, match=r"datasketch.*nemo-openmath\[duplicates\]"):  # before anything runs
        GroupThreads(GroupThreadsConfig(near=0.8)).check({})
    with pytest.raises(MissingExtra, match=r"datasketch.*nemo-openmath\[duplicates\]"):
        await run_stage(GroupThreads(GroupThreadsConfig(near=0.8)), tmp_path, threads=[Thread.make("x")])

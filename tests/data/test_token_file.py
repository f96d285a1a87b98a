"""Token files: what goes in comes out, and no damaged byte goes unnoticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.data.section_file import SectionFile
from nemo_openmath.data.tokens.token_file import KIND, MANIFEST, ShardWriter, TokenFolder, runs_of, write_manifest

Row = tuple[str, str, list[int], list[bool]]


def write(folder: Path, shards: list[list[Row]], vocab_size: int = 300) -> TokenFolder:
    for i, rows in enumerate(shards):
        with ShardWriter(folder / f"{i:05d}.tokens", tokenizer="t0", vocab_size=vocab_size, source="s") as writer:
            for row in rows:
                writer.add(*row)
            writer.finish({"no trained token": i})
    return write_manifest(folder, [f"{i:05d}.tokens" for i in range(len(shards))])


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    out = []
    for i in range(draw(st.integers(0, 6))):
        flags = draw(st.lists(st.booleans(), min_size=1, max_size=30))
        ids = draw(st.lists(st.integers(0, 299), min_size=len(flags), max_size=len(flags)))
        out.append((f"é-{i}", draw(st.sampled_from(["cot", "tir"])), ids, flags))
    return out


@given(st.lists(rows(), min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, shards: list[list[Row]]) -> None:
    folder = write(tmp_path_factory.mktemp("tokens"), shards)
    expected = [row for shard in shards for row in shard]
    samples = [(s.id, s.group, s.tokens.tolist(), s.loss_mask.tolist()) for s in folder]
    assert samples == expected
    assert len(folder) == len(expected)
    assert folder.lengths().tolist() == [len(r[2]) for r in expected]
    assert [folder.groups[c] for c in folder.group_codes()] == [r[1] for r in expected]
    assert folder.num_target_tokens == sum(sum(r[3]) for r in expected)
    assert folder.dropped == {"no trained token": sum(range(len(shards)))}


@given(st.lists(st.booleans(), max_size=40))
def test_runs_give_back_the_flags(flags: list[bool]) -> None:
    runs = runs_of(flags)
    assert np.repeat(np.arange(len(runs)) % 2 == 1, runs).tolist() == flags


@pytest.mark.parametrize(("vocab_size", "width"), [(65536, 2), (65537, 4), (151_936, 4)])
def test_tokens_take_the_smallest_type_that_holds_the_vocabulary(tmp_path: Path, vocab_size: int, width: int) -> None:
    top = vocab_size - 1
    folder = write(tmp_path, [[("a", "cot", [0, top, 1], [False, True, True])]], vocab_size)
    assert folder[0].tokens.tolist() == [0, top, 1]
    assert folder[0].tokens.itemsize == width


@pytest.mark.parametrize("wrong", [300, 65536, -1, 1.5, "7"])
def test_what_is_no_id_of_the_vocabulary_is_refused(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(ValueError, match="not ids from 0 to 299"):
        write(tmp_path, [[("a", "cot", [wrong], [True])]])
    assert not list(tmp_path.iterdir())


def test_every_damaged_byte_is_found_at_opening_and_named(tmp_path: Path) -> None:
    write(tmp_path, [[("first", "cot", list(range(40)), [False] * 20 + [True] * 20)], [("second", "tir", [7], [True])]])
    path = tmp_path / "00000.tokens"
    good = path.read_bytes()
    sections = SectionFile(path, KIND)._sections.values()
    between = set(range(8, max(s["offset"] for s in sections)))  # zeros that align sections belong to nobody
    between -= {at for s in sections for at in range(s["offset"], s["offset"] + s["bytes"])}
    assert len(between) < 64 * len(sections)
    for at in set(range(len(good))) - between:
        damaged = bytearray(good)
        damaged[at] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(DamagedFile, match=r"00000\.tokens"):
            TokenFolder(tmp_path)
    for cut in (0, 1, 30, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(DamagedFile, match=r"00000\.tokens"):
            TokenFolder(tmp_path)
    path.write_bytes((tmp_path / "00001.tokens").read_bytes())  # whole, but another one
    with pytest.raises(DamagedFile, match=r"00000\.tokens"):
        TokenFolder(tmp_path)


def test_large_files_are_checked_sample_by_sample(tmp_path: Path) -> None:
    write(tmp_path, [[("a", "cot", [1, 2, 3], [True] * 3), ("b", "cot", [4, 5, 6], [True] * 3)]])
    path = tmp_path / "00000.tokens"
    data = bytearray(path.read_bytes())
    data[64 + 2 * 4] ^= 1  # the second token of the second sample
    path.write_bytes(data)
    folder = TokenFolder(tmp_path, verify_bytes=0)
    assert folder[0].tokens.tolist() == [1, 2, 3]
    with pytest.raises(DamagedFile, match=r"00000\.tokens: sample 1"):
        folder[1]
    with pytest.raises(DamagedFile, match=r"00000\.tokens"):
        folder.verify()


def test_another_tokenizer_and_unfinished_folders_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, [[("a", "cot", [1], [True])]])
    folder.require("t0")
    with pytest.raises(UserError, match="tokenize again"):
        folder.require("t1")
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(UserError, match="no finished token files"):
        TokenFolder(tmp_path)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 tokens, 1 flags"):
        write(tmp_path, [[("a", "cot", [1, 2], [True])]])
    assert not list(tmp_path.iterdir())

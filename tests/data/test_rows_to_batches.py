"""From rows to batches: token ids, masks and samples arrive whole, once, and the same after any interruption."""

from __future__ import annotations

import gzip
import hashlib
import os
import signal
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_openmath.chat import ChatTokenizer, Transcript, encode
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.core.records.readers import raw_lines
from nemo_openmath.data.batches.batch_sharding import shard_batch
from nemo_openmath.data.batches.packed_data import PackedData
from nemo_openmath.data.packs.write import DOUBLED, NO_WEIGHT, THINNED, TOO_LONG, TOO_SHORT, Mixture, write_packs
from nemo_openmath.data.section_file import SectionWriter
from nemo_openmath.data.tokens import tokenization
from nemo_openmath.data.tokens.token_file import TokenFolder
from nemo_openmath.data.tokens.tokenization import NO_TARGET, write_tokens
from nemo_openmath.models.layout import Parallel
from tests.support.rows import make_rows, store_rows
from tests.support.tokenizers import byte_level, sentencepiece_like

CAPACITY = 2048


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece-like"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = byte_level if request.param == "byte-level" else sentencepiece_like
    return make(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def packed(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tokens and packs made of 300 rows."""
    folder = tmp_path_factory.mktemp("packed")
    write_tokens(store_rows(folder / "rows", make_rows(300)), tokenizer, folder / "tokens")
    write_packs(folder / "tokens", capacity=CAPACITY, pad_multiple=8)
    return folder / "tokens"


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_packs_hold_the_exact_ids_and_masks_of_every_sample(packed: Path, tokenizer: Path) -> None:
    chat = ChatTokenizer.load(tokenizer)
    expected = {r.id: encode(Transcript.from_json(r.transcript), chat) for r in make_rows(300)}
    data = PackedData.open(packed, batch_samples=32, epochs=1)
    seen: Counter[str] = Counter()
    for step in range(data.num_steps):
        for pack in data.batch(step):
            assert len(pack.tokens) == pack.cu_seqlens[-1] <= CAPACITY
            assert not (pack.cu_seqlens % 8).any()
            bounds = pack.cu_seqlens.tolist()
            for name, start, stop in zip(pack.sample_ids, bounds, bounds[1:], strict=False):
                sample = expected[name]
                size = len(sample.ids)
                assert 0 <= stop - start - size < 8
                assert pack.tokens[start : start + size].tolist() == sample.ids
                assert pack.labels[start : start + size - 1].tolist() == sample.ids[1:]
                assert pack.loss_mask[start : start + size - 1].tolist() == sample.loss_mask[1:]
                assert not pack.loss_mask[start + size - 1 : stop].any()
                assert not pack.tokens[start + size : stop].any()
                assert pack.position_ids()[start:stop].tolist() == list(range(stop - start))
                seen[name] += 1
    assert seen == Counter(dict.fromkeys(expected, 1))


@pytest.mark.parametrize(
    "parallel",
    [
        Parallel(),
        Parallel(cp=2),
        Parallel(tp=8, cp=4, sequence_parallel=True),
        Parallel(tp=4, cp=4, pp=2, sequence_parallel=True),
    ],
)
def test_a_pack_planned_for_two_cp_never_outgrows_its_capacity(packed: Path, parallel: Parallel) -> None:
    """Each sample is padded to 2 x CP, each pack to 2 x CP x TP: the plan, made with 8, has room for CP 4 and below."""
    data = PackedData.open(packed, batch_samples=50, epochs=2, pad_multiple=1)
    data.plan.require_multiple(parallel.sample_multiple)
    for step in range(data.num_steps):
        batch = data.batch(step)
        ranks = [pack for share in shard_batch(batch, 3, parallel) for pack in share]
        assert all(len(pack.tokens) <= CAPACITY and not len(pack.tokens) % parallel.pack_multiple for pack in ranks)
        assert not any((pack.cu_seqlens % parallel.sample_multiple).any() for pack in ranks)
        ids = [sorted(name for pack in packs for name in pack.sample_ids if name) for packs in (batch, ranks)]
        assert ids[0] == ids[1]
    with pytest.raises(UserError, match=r"pad_multiple = 8, the layout pads .* of 16 \(2 x CP\); .*pad_multiple=16"):
        data.plan.require_multiple(Parallel(cp=8).sample_multiple)


def test_text_comes_back_from_a_lossless_tokenizer(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "tokenizer")
    chat = ChatTokenizer.load(folder)
    rows = make_rows(20)
    tokens = write_tokens(store_rows(tmp_path / "rows", rows), folder, tmp_path / "tokens")
    for row, sample in zip(rows, tokens, strict=True):
        transcript = Transcript.from_json(row.transcript)
        whole = chat.render(transcript.messages) + transcript.text + "<|im_end|>"
        assert chat.decode(sample.tokens.tolist()) == whole
        targets = chat.decode(sample.tokens[sample.loss_mask].tolist())
        assert targets == "".join(p.text for p in transcript.spans if p.author == "model") + "<|im_end|>"


@pytest.mark.parametrize("batch_samples", [1, 7, 64, 1000])
def test_every_step_holds_exactly_its_samples_and_every_epoch_every_sample_once(
    packed: Path, batch_samples: int
) -> None:
    data = PackedData.open(packed, batch_samples=batch_samples, epochs=3, seed=5)
    assert data.num_samples == 300
    assert data.num_steps == -(-900 // batch_samples)
    stream: list[int] = []
    for step in range(data.num_steps):
        rows = [row for piece in data.rows(step) for row in piece]
        assert len(rows) == min(batch_samples, 900 - step * batch_samples)
        stream += rows
    assert Counter(stream) == Counter(dict.fromkeys(range(300), 3))
    if 300 % batch_samples == 0 or batch_samples == 1:
        assert sorted(stream[:300]) == list(range(300))
        assert stream[:300] != stream[300:600]


def test_batches_are_pure_functions_of_seed_and_step(packed: Path) -> None:
    data = PackedData.open(packed, batch_samples=48, steps=40, seed=3)
    twin = PackedData.open(packed, batch_samples=48, steps=40, seed=3)
    assert data.fingerprint == twin.fingerprint
    for step in (39, 0, 17, 18):  # in any order
        ours, theirs = data.batch(step), twin.batch(step)
        assert [p.sample_ids for p in ours] == [p.sample_ids for p in theirs]
        assert all(
            (a.tokens == b.tokens).all() and (a.loss_mask == b.loss_mask).all()
            for a, b in zip(ours, theirs, strict=True)
        )
    different = PackedData.open(packed, batch_samples=48, steps=40, seed=4)
    assert different.rows(0) != data.rows(0)
    assert different.fingerprint != data.fingerprint
    assert PackedData.open(packed, batch_samples=48, steps=80, seed=3).fingerprint == data.fingerprint  # prolonged


def test_shuffling_keeps_the_packing(packed: Path) -> None:
    data = PackedData.open(packed, batch_samples=100, epochs=2)
    packs = sum(len(data.batch(step)) for step in range(data.num_steps))
    assert packs <= 2 * data.plan.num_packs + data.num_steps  # at most one cut a step
    assert data.plan.fill > 0.95
    assert data.plan.meta["padding"] == sum(-s.tokens.size % 8 for s in data.plan.samples.folders[0])


def test_plan_does_not_depend_on_the_order_of_rows(tokenizer: Path, tmp_path: Path) -> None:
    batches = []
    for name, rows in (("a", make_rows(60)), ("b", make_rows(60)[::-1])):
        write_tokens(store_rows(tmp_path / name, rows), tokenizer, tmp_path / f"{name}.tokens")
        write_packs(tmp_path / f"{name}.tokens", capacity=CAPACITY)
        data = PackedData.open(tmp_path / f"{name}.tokens", batch_samples=20, epochs=1)
        batches.append([p.sample_ids for step in range(data.num_steps) for p in data.batch(step)])
    assert batches[0] == batches[1]


def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_SHARD_BYTES", 1 << 16)
    tokenizer = byte_level(tmp_path / "tokenizer")
    rows = tmp_path / "rows"
    store_rows(rows, make_rows(240))
    tokens = write_tokens(rows, tokenizer, tmp_path / "one", workers=1)
    write_tokens(rows, tokenizer, tmp_path / "two", workers=2)
    assert len(tokens.shards) > 3
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert [s.id for s in tokens] == [r.id for r in make_rows(240)]
    with (rows / "part-00000-of-00001.jsonl").open("ab") as file:
        file.write(b"{half")
    with pytest.raises(UserError, match=r"jsonl:241: not an SFT row"):  # also from a worker process
        write_tokens(rows, tokenizer, tmp_path / "two", workers=2)


def _make(rows: Path, tokenizer: Path, folder: Path, kill_at: tuple[str, int] | None = None) -> None:
    """Write tokens and packs.

    ``kill_at``: (name, n): this process is killed half-way through the n-th write to the file of this name or, with
    n = -1, when all is written and the file is about to get its name.
    """
    if kill_at is not None:
        write, finish = SectionWriter.write, SectionWriter.finish
        writes_left = [kill_at[1]]

        def dying_write(self: SectionWriter, data: Any) -> None:
            writes_left[0] -= self.path.name == kill_at[0]
            if writes_left[0] == 0:
                view = np.ascontiguousarray(data).data.cast("B") if isinstance(data, np.ndarray) else memoryview(data)
                self._file.write(view[: len(view) // 2])
                self._file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, data)

        def dying_finish(self: SectionWriter, meta: dict[str, Any]) -> None:
            if self.path.name == kill_at[0] and kill_at[1] < 0:  # whole, but not yet named
                os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
            finish(self, meta)

        SectionWriter.write, SectionWriter.finish = dying_write, dying_finish  # type: ignore[method-assign]
    tokenization._SHARD_BYTES = 1 << 16  # several shards
    write_tokens(rows, tokenizer, folder, workers=1)
    write_packs(folder, capacity=4096)


def test_killed_and_run_again_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 inside shards, before a shard and before the plan get their names, and inside the plan."""
    monkeypatch.setattr(tokenization, "_SHARD_BYTES", tokenization._SHARD_BYTES)  # put back afterwards
    context = get_context("forkserver")  # a fork of this process would inherit locks that its threads hold
    context.set_forkserver_preload(["nemo_openmath.data.packs.write", "nemo_openmath.data.tokens.tokenization"])
    tokenizer = byte_level(tmp_path / "tokenizer")
    rows = store_rows(tmp_path / "rows", make_rows(240))
    _make(rows, tokenizer, tmp_path / "whole")
    shards = len(list((tmp_path / "whole").glob("*.tokens")))
    assert shards > 3
    killed = tmp_path / "killed"
    finished: dict[str, int] = {}
    for kill_at in (
        ("00001.tokens", 9),
        ("00001.tokens", -1),
        ("00002.tokens", 1),
        ("packs.plan", 1),
        ("packs.plan", -1),
    ):
        process = context.Process(target=_make, args=(rows, tokenizer, killed, kill_at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (killed / "packs.plan").exists()
        shards_there = {path.name: path.stat().st_mtime_ns for path in killed.glob("0*.tokens")}
        assert len(shards_there) == (shards if kill_at[0] == "packs.plan" else int(kill_at[0][:5]))
        assert shards_there.items() >= finished.items()  # what was finished was not made again
        finished = shards_there
        assert (killed / "tokens.json").exists() == (kill_at[0] == "packs.plan")
        assert list(killed.glob(".*.tmp"))
    _make(rows, tokenizer, killed)
    assert digest(killed) == digest(tmp_path / "whole")


def test_another_input_or_option_replaces_the_shards(tokenizer: Path, tmp_path: Path) -> None:
    rows = make_rows(30)
    store_rows(tmp_path / "rows", rows)
    masked = write_tokens(tmp_path / "rows", tokenizer, tmp_path / "tokens")
    before = masked.num_target_tokens
    unmasked = write_tokens(tmp_path / "rows", tokenizer, tmp_path / "tokens", train_on_tool_output=True)
    assert unmasked.num_target_tokens > before
    assert unmasked.num_tokens == sum(s.tokens.size for s in unmasked)
    path = tmp_path / "rows" / "part-00000-of-00001.jsonl"
    text = b"".join(raw_lines(path))
    middle = text.index(b"First", len(text) // 2)  # as long as before, other in the middle alone
    (tmp_path / "other.jsonl").write_bytes(text[:middle] + b"Worst" + text[middle + 5 :])
    (tmp_path / "rows.jsonl").write_bytes(text)
    for name in ("rows", "other"):
        (tmp_path / f"{name}.jsonl").rename(tmp_path / "input.jsonl")
        last = write_tokens(tmp_path / "input.jsonl", tokenizer, tmp_path / "again")
    assert sum(a.tokens.tolist() != b.tokens.tolist() for a, b in zip(masked, last, strict=True)) == 1
    packed = gzip.compress(text)
    (tmp_path / "rows.jsonl.gz").write_bytes(packed)
    compressed = write_tokens(tmp_path / "rows.jsonl.gz", tokenizer, tmp_path / "tokens")
    assert [s.id for s in compressed] == [r.id for r in rows]
    assert compressed.num_target_tokens == before


def test_rows_that_cannot_be_trained_on_are_counted_by_reason(tokenizer: Path, tmp_path: Path) -> None:
    rows = make_rows(10)
    nothing = Transcript.from_json(rows[0].transcript).to_json() | {"pieces": [], "ended": False}
    lines = [*rows, rows[3], rows[1].with_(id="row-nothing", transcript=nothing)]
    import orjson

    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(orjson.dumps(r) for r in lines))
    tokens = write_tokens(tmp_path / "rows.jsonl", tokenizer, tmp_path / "tokens")
    assert tokens.dropped == {NO_TARGET: 1}
    lengths = {s.id: len(s.tokens) for s in tokens}
    longest = max(lengths.values())
    exact = write_packs(tmp_path / "tokens", capacity=longest)
    assert exact.meta["dropped"] == {DOUBLED: 1}
    assert exact.meta["examples"] == {DOUBLED: rows[3].id}
    assert exact.meta["samples"] == 10
    shorter = write_packs(tmp_path / "tokens", capacity=longest - 1)
    assert shorter.meta["dropped"][TOO_LONG] == sum(n == longest for n in lengths.values())
    with pytest.raises(UserError, match="longer than"):
        write_packs(tmp_path / "tokens", capacity=longest - 1, too_long="error")


def test_empty_input(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"")
    tokens = write_tokens(tmp_path / "rows.jsonl", tokenizer, tmp_path / "tokens")
    assert len(tokens) == 0
    assert list(tokens) == []
    with pytest.raises(UserError, match="no sample to train on"):
        write_packs(tmp_path / "tokens", capacity=64)
    with pytest.raises(UserError, match="no such file"):
        write_tokens(tmp_path / "nothing.jsonl", tokenizer, tmp_path / "tokens")


def test_a_broken_row_is_named(tokenizer: Path, tmp_path: Path) -> None:
    store_rows(tmp_path / "rows", make_rows(5))
    path = tmp_path / "rows" / "part-00000-of-00001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in (b"{half\n", b'{"id": "x"}\n', lines[2].replace(b'"body":[', b'"body":[1,'), b"[1]\n"):
        path.write_bytes(b"".join([*lines[:3], wrong, *lines[4:]]))
        with pytest.raises(UserError, match=r"part-00000-of-00001\.jsonl:4: not an SFT row"):
            write_tokens(tmp_path / "rows", tokenizer, tmp_path / "tokens")


@pytest.mark.parametrize("wrong", [-1, 1.5, "7", 60_000])
def test_ids_that_a_row_brings_are_checked(tmp_path: Path, wrong: object) -> None:
    """60000 fits into the file's type and not into the vocabulary: it would be read from outside the embedding."""
    folder = byte_level(tmp_path / "tokenizer")
    piece = {"author": "model", "text": "x", "ids": [5, wrong]}
    (row,) = make_rows(1)
    own = row.transcript | {"pieces": [piece], "tokenizer": ChatTokenizer.load(folder).fingerprint}
    rows = store_rows(tmp_path / "rows", [row.with_(transcript=own)])
    with pytest.raises(UserError, match="brings ids that are not the tokenizer's"):
        write_tokens(rows, folder, tmp_path / "tokens")
    assert not list((tmp_path / "tokens").iterdir())


def test_mixture_weights_and_curriculum(packed: Path, tmp_path: Path) -> None:
    groups = Counter(s.group for s in TokenFolder(packed))
    plan = write_packs(
        packed,
        tmp_path,
        capacity=CAPACITY,
        mixture=Mixture(phases=[["tir"], ["cot"]], weights={"tir": 2.5}),
    )
    assert plan.meta["dropped"] == {NO_WEIGHT: groups["genselect"]}
    data = PackedData.open(tmp_path, batch_samples=10, epochs=2)
    stream = [data.plan.samples[row] for step in range(data.num_steps) for piece in data.rows(step) for row in piece]
    times = Counter(s.id for s in stream if s.group == "tir")
    assert set(times.values()) == {4, 6}  # two epochs of two or three copies
    switch = sum(times.values())
    mixed = 10  # samples of the step in which the phases meet: a step's packs have no order
    assert {s.group for s in stream[: switch - mixed]} == {"tir"}
    assert {s.group for s in stream[switch + mixed :]} == {"cot"}
    assert Counter(s.group for s in stream)["cot"] == 2 * groups["cot"]
    half = write_packs(packed, tmp_path, capacity=CAPACITY, mixture=Mixture(weights={"cot": 0.5}))
    halved = Counter(half.samples[row].group for row in half.entries.tolist())
    assert 0 < halved["cot"] < groups["cot"]
    assert half.meta["dropped"] == {THINNED: groups["cot"] - halved["cot"]}
    with pytest.raises(UserError, match="no sample of group 'tri'"):
        write_packs(packed, tmp_path, capacity=CAPACITY, mixture=Mixture(weights={"tri": 1}))


def test_second_round_keeps_long_solutions(packed: Path, tmp_path: Path) -> None:
    solutions = {s.id: len(s.tokens) - int(np.argmax(s.loss_mask)) for s in TokenFolder(packed) if s.group == "cot"}
    limit = sorted(solutions.values())[len(solutions) // 2]
    plan = write_packs(packed, tmp_path, capacity=CAPACITY, mixture=Mixture(at_least={"cot": limit}))
    planned = {plan.samples[row].id for row in plan.entries.tolist()}
    assert planned & solutions.keys() == {i for i, tokens in solutions.items() if tokens >= limit}
    assert plan.meta["dropped"] == {TOO_SHORT: len(solutions.keys() - planned)}
    assert len(planned - solutions.keys()) == len(TokenFolder(packed)) - len(solutions)  # the other modes are exempt


def test_several_token_folders_in_one_plan(packed: Path, tokenizer: Path, tmp_path: Path) -> None:
    write_tokens(store_rows(tmp_path / "rows", make_rows(40, seed=9)), tokenizer, tmp_path / "more")
    write_packs([packed, tmp_path / "more"], tmp_path / "packs", capacity=CAPACITY)
    data = PackedData.open(tmp_path / "packs", batch_samples=50, epochs=1)
    ids = [i for step in range(data.num_steps) for pack in data.batch(step) for i in pack.sample_ids]
    assert sorted(ids) == sorted([s.id for s in TokenFolder(packed)] + [s.id for s in TokenFolder(tmp_path / "more")])


def test_what_does_not_belong_together_is_refused_at_opening(packed: Path, tokenizer: Path, tmp_path: Path) -> None:
    chat = ChatTokenizer.load(tokenizer)
    PackedData.open(packed, batch_samples=8, epochs=1, tokenizer=chat.fingerprint, pad_multiple=4)
    with pytest.raises(UserError, match="tokenize again"):
        PackedData.open(packed, batch_samples=8, epochs=1, tokenizer="another")
    with pytest.raises(UserError, match="pack again with pad_multiple=48"):
        PackedData.open(packed, batch_samples=8, epochs=1, pad_multiple=6 * 8)
    with pytest.raises(UserError, match="above zero"):
        PackedData.open(packed, batch_samples=8, epochs=float("inf"))
    with pytest.raises(UserError, match="no token files"):
        write_packs([], tmp_path, capacity=CAPACITY)
    with pytest.raises(UserError, match="as epochs or as steps"):
        PackedData.open(packed, batch_samples=8)
    rows = store_rows(tmp_path / "rows", make_rows(20))
    write_tokens(rows, tokenizer, tmp_path / "tokens")
    write_packs(tmp_path / "tokens", capacity=CAPACITY)
    write_tokens(rows, tokenizer, tmp_path / "tokens", train_on_tool_output=True)
    with pytest.raises(DamagedFile, match="other token files"):
        PackedData.open(tmp_path / "tokens", batch_samples=8, epochs=1)


def test_attention_cost_of_a_pack(packed: Path) -> None:
    pack = PackedData.open(packed, batch_samples=8, epochs=1).batch(0)[0]
    lengths = np.diff(pack.cu_seqlens).tolist()
    assert pack.attention_cost == sum(n * n for n in lengths)
    assert pack.num_target_tokens == pack.loss_mask.sum()

"""Statistics against counting by hand; a shown pack spells its samples."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.data import Mixture, PackedData, PackPlan, write_packs, write_tokens
from nemo_openmath.data.stats import measure, show_pack, show_stats
from nemo_openmath.data.verify import verify
from tests.support.rows import make_rows, store_rows
from tests.support.tokenizers import byte_level


def test_statistics_and_a_shown_pack(tmp_path: Path) -> None:
    chat = ChatTokenizer.load(byte_level(tmp_path / "tokenizer"))
    tokens = write_tokens(store_rows(tmp_path / "rows", make_rows(200)), chat.folder, tmp_path / "tokens")
    write_packs(tmp_path / "tokens", capacity=2048, pad_multiple=8)
    plan = PackPlan(tmp_path / "tokens")
    stats = measure(plan, batch_samples=50, ranks=(2, 4))
    samples = list(tokens)
    for group in stats.groups:
        lengths = sorted(len(s.tokens) for s in samples if s.group == group.group)
        assert (group.samples, group.tokens) == (len(lengths), sum(lengths))
        assert (group.quantiles[0], group.quantiles[-1]) == (lengths[0], lengths[-1])
        assert sum(group.histogram) == len(lengths)
        assert group.num_target_tokens == sum(int(s.loss_mask.sum()) for s in samples if s.group == group.group)
        assert group.prompt_tokens == sum(int(s.loss_mask.argmax()) for s in samples if s.group == group.group)
    assert {g.group for g in stats.groups} == {"cot", "tir", "genselect"}
    assert stats.target_share == sum(s.loss_mask.sum() for s in samples) / sum(len(s.tokens) for s in samples)
    assert stats.padding == sum(-len(s.tokens) % 8 for s in samples) / sum(-(-len(s.tokens) // 8) * 8 for s in samples)
    assert all(i.in_order and i.assigned and 1 <= i.assigned <= i.in_order for i in stats.imbalance)
    few = measure(plan, batch_samples=1024, ranks=(2, 1000)).imbalance
    assert few[0].packs == few[1].packs == plan.num_packs
    assert few[0].assigned is not None
    assert few[1].in_order is few[1].assigned is None, "no assignment helps where some ranks get no pack"

    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(show_stats(stats))
    printed = console.export_text()
    assert f"{stats.fill:.3%} of their capacity is used" in printed
    assert f"{stats.groups[0].tokens:,}" in printed
    assert max(map(len, printed.splitlines())) <= 80

    (pack, *_) = PackedData.open(tmp_path / "tokens", batch_samples=5, epochs=1).batch(0)
    shown = show_pack(pack, chat)
    for name in pack.sample_ids:
        sample = next(s for s in samples if s.id == name)
        assert chat.decode(sample.tokens.tolist()) in shown.plain
        used, targets = len(sample.tokens), int(sample.loss_mask.sum())
        assert f"{targets} of {used} tokens are targets, {-used % 8} of padding" in shown.plain
    green = "".join(shown.plain[s.start : s.end] for s in shown.spans if s.style == "green")
    expected = "".join(
        chat.decode(s.tokens[s.loss_mask].tolist()) for n in pack.sample_ids for s in samples if s.id == n
    )
    assert green == expected
    marked = show_pack(pack, chat, marks=True).plain
    assert "".join(part.split("⟧")[0] for part in marked.split("⟦")[1:]) == expected


def test_share_of_targets_is_of_what_is_packed(tmp_path: Path) -> None:
    chat = ChatTokenizer.load(byte_level(tmp_path / "tokenizer"))
    tokens = write_tokens(store_rows(tmp_path / "rows", make_rows(60)), chat.folder, tmp_path / "tokens")
    write_packs(tmp_path / "tokens", capacity=2048, mixture=Mixture(weights={"cot": 2, "tir": 0}))
    stats = measure(PackPlan(tmp_path / "tokens"))
    times = {"cot": 2, "genselect": 1, "tir": 0}
    targets = sum(times[s.group] * int(s.loss_mask.sum()) for s in tokens)
    assert stats.target_share == targets / sum(times[s.group] * len(s.tokens) for s in tokens)


def test_verify_reads_what_opening_does_not(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "tokenizer")
    write_tokens(store_rows(tmp_path / "rows", make_rows(20)), tokenizer, tmp_path / "stage" / "tokens-0")
    write_packs(tmp_path / "stage" / "tokens-0", tmp_path / "packs", capacity=2048)
    assert len(list(verify(tmp_path / "packs"))) == 2
    assert len(list(verify(tmp_path / "stage"))) == 1
    path = tmp_path / "stage" / "tokens-0" / "00000.tokens"
    data = bytearray(path.read_bytes())
    data[100] ^= 1  # in the tokens
    path.write_bytes(data)
    for folder in ("packs", "stage"):
        with pytest.raises(DamagedFile, match=r"00000\.tokens"):
            list(verify(tmp_path / folder))
    with pytest.raises(UserError, match="neither packs nor token files"):
        list(verify(tmp_path))

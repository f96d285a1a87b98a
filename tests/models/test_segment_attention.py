"""What a GPU would run, as far as a CPU can tell: kernels are called as torch declares them (on tensors without data),
and give the same as the CPU's where they are put in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor
from torch.nn.attention import _registry, register_flash_attention_impl

from nemo_openmath.models import segment_attention
from nemo_openmath.models.context_plan import Segments
from nemo_openmath.models.loss import linear_cross_entropy
from nemo_openmath.models.segment_attention import attend, backward_block, forward_block, use_flash_attention_3


def segments(queries: tuple[int, ...], keys: tuple[int, ...], device: str = "cpu") -> Segments:
    cu = (torch.tensor(ends, dtype=torch.int32, device=device) for ends in (queries, keys))
    return Segments(queries, keys, tuple(cu))  # type: ignore[arg-type]


def test_kernels_are_called_as_torch_declares_them() -> None:
    query, keys, values = (torch.empty(size, device="meta", dtype=torch.bfloat16, requires_grad=True) for size in SIZES)
    runs = segments((0, 8, 24), (0, 16, 40), "meta")
    attend(query, keys, values, runs, 0.25).sum().backward()
    for causal in (True, False):
        out, statistics = forward_block(query, keys, values, runs, 0.25, causal=causal)
        assert (out.shape, statistics.shape, statistics.dtype) == (query.shape, (4, 24), torch.float32)
        gradients = backward_block(out, query, keys, values, out, statistics, runs, 0.25, causal=causal)
        assert [g.shape for g in gradients] == [query.shape, keys.shape, values.shape]


@pytest.mark.skipif(Version(torch.__version__) < Version("2.12"), reason="torch 2.11 computes this only on a GPU")
def test_the_loss_calls_the_product_for_gpus_as_torch_declares_it() -> None:
    hidden, weight = (torch.empty(n, 16, device="meta", dtype=torch.bfloat16, requires_grad=True) for n in (200, 64))
    loss = linear_cross_entropy(hidden, weight, torch.empty(200, dtype=torch.int64, device="meta"))
    loss.backward()
    assert (loss.dtype, weight.grad.dtype, hidden.grad.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)  # type: ignore[union-attr]


SIZES = ((24, 4, 16), (40, 2, 16), (40, 2, 16))


def test_grouped_queries_are_asked_for_where_torch_knows_the_word() -> None:
    """torch 2.11's varlen_attn has no ``enable_gqa``."""

    def newer(query: Tensor, *, scale: float, enable_gqa: bool = False) -> None: ...
    def older(query: Tensor, *, scale: float) -> None: ...

    assert segment_attention._asks_for_groups(newer)
    assert not segment_attention._asks_for_groups(older)


@pytest.fixture
def gpu_kernels() -> Iterator[SimpleNamespace]:
    """Flash attention over runs, which torch has for GPUs alone, in plain products; ``factor`` spoils what it gives."""
    kernels = SimpleNamespace(factor=1.0)

    def probabilities(query: Tensor, key: Tensor, rest: Any, scale: float) -> tuple[Tensor, Tensor]:
        cu_q, cu_k, _max_q, _max_k, _dropout, causal = rest[:6]
        scores = scale * torch.einsum("qhd,khd->hqk", query.float(), _repeated(key, query))
        seen = _visible(segments(tuple(cu_q.tolist()), tuple(cu_k.tolist())), causal)
        scores = scores.masked_fill(~seen, float("-inf"))
        return scores.softmax(-1), scores.logsumexp(-1)

    def forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **words: Any) -> tuple[Tensor, ...]:
        shares, statistics = probabilities(query, key, rest, words["scale"])
        out = torch.einsum("hqk,khd->qhd", shares, _repeated(value, query)) * kernels.factor
        return out.to(query.dtype), statistics, torch.zeros(2), torch.zeros(()), torch.zeros(0)

    def backward(
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, _: Tensor, *rest: Any, **words: Any
    ) -> tuple[Tensor, ...]:
        shares, _ = probabilities(query, key, rest, words["scale"])
        of_shares = torch.einsum("qhd,khd->hqk", grad.float(), _repeated(value, query))
        of_scores = words["scale"] * shares * (of_shares - (shares * of_shares).sum(-1, keepdim=True))
        of_keys = torch.einsum("hqk,qhd->khd", of_scores, query.float())
        of_values = torch.einsum("hqk,qhd->khd", shares, grad.float())
        of_query = torch.einsum("hqk,khd->qhd", of_scores, _repeated(key, query))
        of_keys, of_values = (x.unflatten(1, (key.shape[1], -1)).sum(2) for x in (of_keys, of_values))
        return tuple(x.to(query.dtype) for x in (of_query, of_keys, of_values))

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    yield kernels
    library._destroy()


def _repeated(x: Tensor, query: Tensor) -> Tensor:
    return x.float().repeat_interleave(query.shape[1] // x.shape[1], 1)


def _visible(runs: Segments, causal: bool) -> Tensor:
    seen = torch.zeros(runs.cu_queries[-1], runs.cu_keys[-1], dtype=torch.bool)
    for i in range(len(runs.cu_queries) - 1):
        (a, b), (c, d) = runs.cu_queries[i : i + 2], runs.cu_keys[i : i + 2]
        seen[a:b, c:d] = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a) if causal else d - c)
    return seen


@pytest.mark.parametrize("defect", [None, "raises", "other numbers"])
def test_flash_attention_3_is_taken_where_it_gives_the_same(
    gpu_kernels: SimpleNamespace, defect: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Hopper, with its package. A package of another version fails, or gives other numbers: then torch's stays."""
    (tmp_path / "flash_attn_interface.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_IMPLS", dict(_registry._FLASH_ATTENTION_IMPLS))
    register_flash_attention_impl("FA3", register_fn=_activation(gpu_kernels, defect))
    use_flash_attention_3.cache_clear()
    assert use_flash_attention_3(torch.device("cpu")) is (defect is None)
    assert _registry.current_flash_attention_impl() == ("FA3" if defect is None else None)
    _registry.restore_flash_attention_impl(_raise_warn=False)
    use_flash_attention_3.cache_clear()
    query, keys, values = (torch.randn(size) for size in SIZES)
    runs = segments((0, 8, 24), (0, 16, 40))
    got = segment_attention._varlen(query, keys, values, runs.on_device, runs.longest, 0.25)
    torch.testing.assert_close(got, attend(query, keys, values, runs, 0.25), rtol=1e-5, atol=1e-5)


def _activation(kernels: SimpleNamespace, defect: str | None) -> Callable[[], Any]:
    def activate() -> Any:
        if defect == "raises":
            raise RuntimeError("Module 'flash_attn_interface' does not expose FA3 kernels")
        kernels.factor = 1.0 if defect is None else 1.1
        return SimpleNamespace(remove=lambda: setattr(kernels, "factor", 1.0))

    return activate

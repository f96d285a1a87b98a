"""Attention of runs of queries to runs of keys (:class:`Segments`), by the device's kernels.

* On CPU: torch's flash attention for CPU, sample by sample.
* On a GPU in bf16: flash attention over all runs in one call. FlashAttention 3 where its package is installed and
  gives the same on a small input; else the kernels of torch.
* On a GPU in fp32: torch's SDPA sample by sample. Only its math kernel computes grouped queries in fp32, and it holds
  all scores of a sample: right, but for tests of some thousand tokens.

:func:`attend` is differentiable. :func:`forward_block` and :func:`backward_block` are the two passes by themselves, for
a query that sees several blocks of keys (models/context_exchange.py): the forward pass also returns the log-sum-exp of
each query's scores, by which blocks are merged, and the backward pass takes that of all blocks together.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_openmath.models.context_plan import Segments

log = logging.getLogger(__name__)


def attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """Return causal attention [n, heads, d] of query [n, heads, d] to key and value [m, groups, d]."""
    if query.device.type == "cpu" or query.dtype == torch.float32:
        return _each_run(query, key, value, segments, scale)
    return _varlen_flash(query, key, value, segments, scale)


def _each_run(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """SDPA run by run (CPU, and fp32 on GPU, which flash attention refuses)."""
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for q, k, v in _runs(segments, query, key, value):
        rows, columns, mask = q.shape[2], k.shape[2], None
        if rows != columns:  # a later zig-zag chunk: queries stand at the end of their keys
            mask = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril(columns - rows)
        outputs.append(
            F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=grouped)
        )
    return torch.cat(outputs, dim=2).squeeze(0).transpose(0, 1)


def _runs(segments: Segments, query: Tensor, *keys: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield each run's part [1, heads, run, d] of tensors of queries and of keys.

    By split, not slices: its backward lays the runs' gradients end to end once; a slice's fills a whole pack.
    """
    sizes = [[b - a for a, b in itertools.pairwise(cu)] for cu in (segments.cu_queries, segments.cu_keys)]
    parts = [query.transpose(0, 1).unsqueeze(0).split(sizes[0], dim=2)]
    parts += [x.transpose(0, 1).unsqueeze(0).split(sizes[1], dim=2) for x in keys]
    return zip(*parts, strict=True)


def _varlen_flash(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float) -> Tensor:
    """Flash attention over all runs in one call (GPU, bf16 or fp16)."""
    if query.is_cuda:
        use_flash_attention_3(query.device)
    return _varlen(query, key, value, segments.on_device, segments.longest, scale)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, cu: tuple[Tensor, Tensor], longest: tuple[int, int], scale: float
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if _asks_for_groups(varlen_attn) else {}
    out = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        *cu,
        *longest,
        scale=scale,
        window_size=(-1, 0),  # causal
        **grouped,
    )
    assert isinstance(out, Tensor)
    return out


@functools.cache
def _asks_for_groups(function: Callable[..., Any]) -> bool:
    """Return whether grouped queries are asked for by name, as since torch 2.12. In torch 2.11 the kernel takes fewer
    heads of keys as they come."""
    return "enable_gqa" in inspect.signature(function).parameters


@functools.cache
def use_flash_attention_3(device: torch.device) -> bool:
    """Let torch take FlashAttention 3's kernels in this process; return whether it does.

    They are for Hopper (compute capability 9), and are taken where the package ``flash_attn_interface`` is installed
    and a small attention, forward and backward, comes out as with torch's own kernels: torch calls the package by
    position, so that another version of it may fail, or worse.
    """
    if torch.cuda.get_device_capability(device)[0] != 9 or importlib.util.find_spec("flash_attn_interface") is None:
        return False
    from torch.nn import attention

    expected = _small_attention(device)
    try:
        attention.activate_flash_attention_impl("FA3")
        got = _small_attention(device)
        worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))
        if not worst < 2e-2:  # bf16, and not NaN
            raise RuntimeError(f"results differ by {worst:.2g}")
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
        if hasattr(attention, "restore_flash_attention_impl"):
            attention.restore_flash_attention_impl(_raise_warn=False)
        log.warning(f"FlashAttention 3 is installed and not used: {str(error).splitlines()[0]}")
        return False
    log.info("attention by FlashAttention 3")
    return True


def _small_attention(device: torch.device) -> list[Tensor]:
    """Return output and gradients (fp32) of grouped attention in two runs: with the same keys, with more keys."""
    random = torch.Generator().manual_seed(0)
    sizes = ((48, 4, 64), (80, 2, 64), (80, 2, 64))
    query, key, value = (torch.randn(s, generator=random).to(device, torch.bfloat16).requires_grad_() for s in sizes)
    cu_queries, cu_keys = (torch.tensor(c, dtype=torch.int32, device=device) for c in ([0, 16, 48], [0, 16, 80]))
    with torch.enable_grad():
        out = _varlen(query, key, value, (cu_queries, cu_keys), (32, 64), 0.125)
        gradients = torch.autograd.grad(out.float().square().sum(), (query, key, value))
    return [x.detach().float() for x in (out, *gradients)]


def forward_block(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scale: float, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """Return attention [n, heads, d] of query [n, heads, d] to one block of keys and values [m, groups, d], and the
    log-sum-exp [heads, n] (fp32) of each query's scores. Without ``causal`` a run of queries sees all of its keys."""
    if query.device.type == "cpu":
        outputs = [
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
            for q, k, v in _runs(segments, query, key, value)
        ]
        out, statistics = (torch.cat(parts, dim=2)[0] for parts in zip(*outputs, strict=True))
        return out.transpose(0, 1), statistics
    if query.is_cuda:
        use_flash_attention_3(query.device)
    out, statistics, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        *segments.on_device,
        *segments.longest,
        0.0,  # no dropout
        causal,
        False,  # no debug mask
        scale=scale,
        **_window(causal),
    )
    return out, statistics


def backward_block(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    statistics: Tensor,
    segments: Segments,
    scale: float,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what one block of keys adds to the gradients of query, and the gradients of its keys and values.

    ``out`` and ``statistics`` (log-sum-exp) are those of all blocks together, ``grad`` is the gradient of ``out``.
    """
    if query.device.type == "cpu":
        sizes = [b - a for a, b in itertools.pairwise(segments.cu_queries)]
        of_queries = [x.transpose(0, 1).unsqueeze(0).split(sizes, dim=2) for x in (grad, out)]
        of_queries.append(statistics.unsqueeze(0).split(sizes, dim=2))
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        gradients = [
            backward(g, q, k, v, o, s, 0.0, causal, scale=scale)
            for (q, k, v), g, o, s in zip(_runs(segments, query, key, value), *of_queries, strict=True)
        ]
        dq, dk, dv = (torch.cat(parts, dim=2)[0].transpose(0, 1) for parts in zip(*gradients, strict=True))
        return dq, dk, dv
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        grad,
        query,
        key,
        value,
        out,
        statistics,
        *segments.on_device,
        *segments.longest,
        0.0,
        causal,
        no_dropout,
        torch.empty(0, device=query.device),
        scale=scale,
        **_window(causal),
    )
    return dq, dk, dv


def _window(causal: bool) -> dict[str, int]:
    return {"window_size_left": -1, "window_size_right": 0 if causal else -1}

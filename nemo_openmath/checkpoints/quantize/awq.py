"""AWQ (arXiv 2306.00978): 4-bit weights whose important input channels were scaled up before rounding.

A linear layer y = W x is stored as (W s) and applied to x / s, one factor per input channel:
s = mean|x|^a / mean|w|^(1-a) (w divided by its group's largest), normalised; a of 0, 0.1, .. 1 is chosen by the error
of y over rows of calibration. 1/s goes into the norm before (q, k, v; gate, up); elsewhere (o, down) it is stored as
``pre_quant_scale``, or, where the format knows no such thing, goes into the rows of ``up`` (down) and o has none.
Weights are int4 in groups of 128 along the input, with scale = largest / 7.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nemo_openmath.checkpoints.lazy import InMemory, LazyTensor, check_finite
from nemo_openmath.checkpoints.quantize.calibration import LINEAR, Calibration, group_of
from nemo_openmath.core.errors import UserError

GROUP = 128
_LEVELS = 7.0
_STEPS = 11  # of the exponent, 0 to 1


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round fp32 [out, in] to int8 [out, in] in -8..7 and scales fp32 [out, in / 128]."""
    groups = weight.unflatten(1, (-1, GROUP))
    scale = groups.abs().amax(2) / _LEVELS
    scale = torch.where(scale > 0, scale, torch.ones(()))
    return (groups / scale[:, :, None]).round_().clamp_(-8, 7).to(torch.int8).flatten(1), scale


def restored(values: Tensor, scale: Tensor) -> Tensor:
    """Compute the inverse of :func:`rounded`, up to rounding."""
    return (values.float().unflatten(1, (-1, GROUP)) * scale.float()[:, :, None]).flatten(1)


def search(weight: Tensor, mean: Tensor, x: Tensor) -> Tensor:
    """Find the factors s [in] (fp32) of the least error |W x - Q(W s) (x / s)| over the rows ``x`` [n, in].

    They are ones where no exponent betters plain rounding. ``weight``: all layers with this input, stacked.
    """
    relative = (groups := weight.abs().unflatten(1, (-1, GROUP))) / (groups.amax(2, keepdim=True) + 1e-30)
    salience = relative.flatten(1).mean(0)
    best, best_error = torch.ones_like(mean), _error(weight, torch.ones_like(mean), x)
    for step in range(_STEPS):
        exponent = step / (_STEPS - 1)
        s = (mean.pow(exponent) / (salience.pow(1 - exponent) + 1e-30)).clamp_(1e-4, 1e4)
        s = s / (s.amax() * s.amin()).sqrt()
        if (error := _error(weight, s, x)) < best_error:
            best, best_error = s, error
    return best


def _error(weight: Tensor, s: Tensor, x: Tensor) -> float:
    gap = restored(*rounded(weight * s)) / s - weight
    return float((x @ gap.T).square().sum(dtype=torch.float64))


def scaled(
    tensors: Mapping[str, LazyTensor], calibration: Calibration, *, stored_scales: bool
) -> dict[str, LazyTensor]:
    """Return ``tensors`` as the same function, ready to be rounded.

    Linear weights are fp32 and scaled, norms divided, and there is a ``pre_quant_scale`` where ``stored_scales``. What
    is stored in a narrow dtype is rounded first, and the weights take up the rest. Layers are computed when they are
    read. Raises UserError where a width is not a multiple of 128.
    """
    for name, tensor in tensors.items():
        if LINEAR.fullmatch(name) and tensor.shape[1] % GROUP:
            problem = f"{name} has {tensor.shape[1]} inputs, int4_awq wants a multiple of {GROUP}"
            raise UserError(problem, remedy="use fp8 or int8")
        if LINEAR.fullmatch(name) and tensor.shape[0] % 2:
            raise UserError(f"{name} has an odd number of rows; two share a byte", remedy="use fp8 or int8")
    changed = dict(tensors)
    dtype = next(iter(tensors.values())).dtype
    members: dict[str, list[str]] = {}
    for name in tensors:
        if LINEAR.fullmatch(name):
            members.setdefault(group_of(name), []).append(name)
    for group, names in members.items():
        if group.endswith(".o") and not stored_scales:
            continue
        weight = torch.cat([tensors[name].full().float() for name in names])
        check_finite(names[0], weight)
        divisor = 1 / search(weight, calibration.mean[group], calibration.rows[group])
        if norm := _norm_before(group):
            before = tensors[norm].full()
            after = (before.float() * divisor).to(before.dtype)
            changed[norm] = InMemory(after)
            used = after.float() / before.float()
            divisor = torch.where(used.isfinite() & (used != 0), used, divisor)
        elif stored_scales:
            stored = divisor.to(dtype)
            changed[names[0].removesuffix("weight") + "pre_quant_scale"] = InMemory(stored)
            divisor = stored.float()
        else:  # down: its input is silu(gate) * up, so up's rows carry the divisor
            up = names[0].replace("down_proj", "up_proj")
            changed[up] = _Factors(changed[up], divisor, axis=0)
        for name in names:
            changed[name] = _Factors(changed[name], 1 / divisor, axis=1)
    return changed


def _norm_before(group: str) -> str | None:
    layer, kind = group.rsplit(".", 2)[0], group.rsplit(".", 1)[1]
    names = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}
    return f"{layer}.{names[kind]}.weight" if kind in names else None


class _Factors(LazyTensor):
    """A matrix in fp32, its rows or columns multiplied by ``factors``."""

    dtype = torch.float32

    def __init__(self, source: LazyTensor, factors: Tensor, axis: int):
        self.source, self.shape = source, source.shape
        self.factors = factors[:, None] if axis == 0 else factors[None]
        self.axis = axis

    def read(self, start: int, stop: int) -> Tensor:
        first, end = start // self.row, -(-stop // self.row)
        block = self.source.read(first * self.row, end * self.row).float().view(-1, self.row)
        block = block * (self.factors[first:end] if self.axis == 0 else self.factors)
        return block.view(-1)[start - first * self.row : stop - first * self.row]

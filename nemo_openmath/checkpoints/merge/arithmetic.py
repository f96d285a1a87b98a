"""How models are merged, tensor by tensor, in fp32 and in pieces. With models x_1 .. x_n, weights w, a base model b:

* linear (model soups, arXiv 2203.05482; the recipe's 0.3 CoT + 0.7 TIR): sum_i w_i x_i, computed as
  x_p + sum_i w_i (x_i - x_p), p of the largest weight: equal inputs, and weight 1, give a model back bit for bit;
* slerp (Shoemake 1985): along the great circle between two tensors, to the part w_2 of the angle;
* task_arithmetic (arXiv 2212.04089): b + sum_i w_i (x_i - b);
* ties (arXiv 2306.01708): of every x_i - b the largest elements are kept (a part ``density``), the sign of each element
  is elected by total weighted mass, those that agree are averaged by weight and added to b;
* dare (arXiv 2311.03099): of every x_i - b elements are dropped at random, the rest (a part ``density``) divided by
  ``density``; then as task arithmetic.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from nemo_openmath.checkpoints import buffers
from nemo_openmath.checkpoints.lazy import PIECE, Elementwise, LazyTensor
from nemo_openmath.checkpoints.methods import Method

_CACHED = 1 << 18  # elements: fp32 buffers of this size stay in the cache, and smaller ones cost more calls
_RANDOM_BLOCK = 1 << 16  # elements whose random numbers come from one seed
_PARALLEL = 0.9995  # cosine above which SLERP is linear: its sine is too small to divide by


def merged(
    method: Method, name: str, parts: Sequence[LazyTensor], weights: Sequence[float], density: float, seed: int
) -> LazyTensor:
    """Return the merge of one tensor, computed when it is read.

    ``parts``: one tensor per weight, then the base where the method has one.
    """
    dtype = parts[0].dtype
    if not dtype.is_floating_point:
        return parts[0]
    if method == "dare":
        return _Dare(parts, weights, density, f"{seed}:{name}")
    functions: dict[str, Callable[[list[Tensor]], Tensor]] = {
        "linear": lambda tensors: weighted_sum(tensors, weights, dtype),
        "slerp": _slerp(parts, weights[-1]),
        "task_arithmetic": lambda tensors: add_differences(tensors[-1], tensors[:-1], weights, dtype),
        "ties": _ties(parts, weights, density),
    }
    return Elementwise(parts, lambda tensors: functions[method](tensors).to(dtype), dtype)


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
    """Return x_p + sum_i w_i (x_i - x_p) of flat tensors, for weights that sum to 1; x_p has the largest weight."""
    pivot = max(range(len(weights)), key=lambda number: weights[number])
    numbers = [number for number in range(len(weights)) if number != pivot]
    return add_differences(tensors[pivot], [tensors[n] for n in numbers], [weights[n] for n in numbers], dtype)


def add_differences(
    base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype | None = None
) -> Tensor:
    """Return base + sum_i w_i (x_i - base), flat, computed in fp32 (float64 stays), block by block within the cache.

    ``dtype``: of the result.
    """
    exact = functools.reduce(torch.promote_types, (tensor.dtype for tensor in (base, *tensors)), torch.float32)
    merged = buffers.empty(base.numel(), dtype or exact)
    block = min(_CACHED, base.numel())
    work = buffers.empty(3 * block, exact).view(3, block)
    for start in range(0, base.numel(), _CACHED):
        stop = min(start + _CACHED, base.numel())
        total, origin, difference = work[:, : stop - start]
        origin.copy_(base[start:stop])
        sums = origin
        for tensor, weight in zip(tensors, weights, strict=True):
            difference.copy_(tensor[start:stop]).sub_(origin)
            sums = torch.add(sums, difference, alpha=weight, out=total)
        merged[start:stop] = sums
    return merged


def _slerp(parts: Sequence[LazyTensor], t: float) -> Callable[[list[Tensor]], Tensor]:
    @functools.cache
    def coefficients() -> tuple[float, float]:
        dot = first = second = 0.0
        for start in range(0, parts[0].numel, PIECE):
            a, b = (part.read(start, min(start + PIECE, part.numel)).double() for part in parts)
            dot, first, second = dot + float(a @ b), first + float(a @ a), second + float(b @ b)
        cosine = dot / math.sqrt(first * second) if first and second else 1.0
        if abs(cosine) > _PARALLEL:
            return 1.0 - t, t
        angle = math.acos(cosine)
        return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)

    def function(tensors: list[Tensor]) -> Tensor:
        first, second = coefficients()
        return tensors[0].float().mul(first).add_(tensors[1].float(), alpha=second)

    return function


def _ties(parts: Sequence[LazyTensor], weights: Sequence[float], density: float) -> Callable[[list[Tensor]], Tensor]:
    @functools.cache
    def thresholds() -> list[float]:
        keep = max(1, round(density * parts[0].numel))
        return [kth_largest_difference(part, parts[-1], keep) for part in parts[:-1]]

    def function(tensors: list[Tensor]) -> Tensor:
        base = tensors[-1].float()
        differences = []
        for tensor, threshold in zip(tensors[:-1], thresholds(), strict=True):
            difference = tensor.float() - base
            differences.append(difference.mul_(difference.abs() >= threshold))
        elected = sum((d * w for d, w in zip(differences, weights, strict=True)), torch.zeros_like(base)).sign_()
        total, mass = torch.zeros_like(base), torch.zeros_like(base)
        for difference, weight in zip(differences, weights, strict=True):
            agrees = (difference.sign() == elected) & (difference != 0)
            total.add_(difference * agrees, alpha=weight)
            mass.add_(agrees, alpha=weight)
        return total.div_(mass).nan_to_num_(0.0, 0.0, 0.0).add_(base)

    return function


def kth_largest_difference(tensor: LazyTensor, base: LazyTensor, k: int) -> float:
    """Return the k-th largest |tensor - base|, exact, without holding the tensors.

    The bits of non-negative floats order as they do: a histogram finds the upper 16 bits, a second one the lower.
    """

    def bits() -> Iterator[Tensor]:
        for start in range(0, tensor.numel, PIECE):
            stop = min(start + PIECE, tensor.numel)
            difference = tensor.read(start, stop).float() - base.read(start, stop).float()
            yield difference.abs_().view(torch.int32)

    def select(histogram: Tensor, k: int) -> tuple[int, int]:
        """Return the bin that holds the k-th largest, and its rank therein."""
        above = histogram.flip(0).cumsum(0)
        index = int(torch.searchsorted(above, k))
        return len(histogram) - 1 - index, k - (int(above[index - 1]) if index else 0)

    upper = torch.zeros(1 << 16, dtype=torch.int64)
    for piece in bits():
        upper += torch.bincount(piece >> 16, minlength=1 << 16)
    high, k = select(upper, k)
    lower = torch.zeros(1 << 16, dtype=torch.int64)
    for piece in bits():
        lower += torch.bincount(piece[(piece >> 16) == high] & 0xFFFF, minlength=1 << 16)
    low, _ = select(lower, k)
    return float(torch.tensor(high << 16 | low, dtype=torch.int32).view(torch.float32))


class _Dare(LazyTensor):
    """Which elements are dropped depends on the seed, the tensor's name and the element's place alone."""

    def __init__(self, parts: Sequence[LazyTensor], weights: Sequence[float], density: float, key: str):
        self.parts, self.weights, self.density, self.key = parts, weights, density, key
        self.dtype, self.shape = parts[0].dtype, parts[0].shape

    def read(self, start: int, stop: int) -> Tensor:
        *tensors, base = (part.read(start, stop).float() for part in self.parts)
        total = base.clone()
        for number, (tensor, weight) in enumerate(zip(tensors, self.weights, strict=True)):
            difference = (tensor - base).mul_(self._mask(number, start, stop))
            total.add_(difference, alpha=weight / self.density)
        return total.to(self.dtype)

    def _mask(self, number: int, start: int, stop: int) -> Tensor:
        first, last, random = start // _RANDOM_BLOCK, -(-stop // _RANDOM_BLOCK), []
        for block in range(first, last):
            digest = hashlib.blake2b(f"{self.key}:{number}:{block}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
            random.append(torch.rand(_RANDOM_BLOCK, generator=generator) < self.density)
        offset = first * _RANDOM_BLOCK
        return torch.cat(random)[start - offset : stop - offset] if random else torch.empty(0, dtype=torch.bool)

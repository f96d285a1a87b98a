"""Cross-entropy against what another head says, fused with both heads: no logits of all rows in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CPU_BLOCK_BYTES = 2 << 20
_GPU_BLOCK_BYTES = 512 << 20


def soft_cross_entropy(features: Tensor, weight: Tensor, said: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum over rows of -softmax(said @ teacher^T) . log softmax(features @ weight^T): a scalar in fp32.

    ``features`` [n, h] and ``weight`` [V, h] get gradients, ``said`` [n, h'] and ``teacher`` [V, h'] none. Logits of a
    block of rows are there at a time.
    """
    return _SoftCrossEntropy.apply(features, weight, said, teacher)


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, said: Tensor, teacher: Tensor) -> Tensor:
        grad_features = torch.empty_like(features)
        grad_weight = torch.zeros_like(weight)
        loss = features.new_zeros(())
        block_bytes = _CPU_BLOCK_BYTES if features.device.type == "cpu" else _GPU_BLOCK_BYTES
        rows = max(64, block_bytes // (4 * len(weight)))
        for start in range(0, len(features), rows):
            block = slice(start, start + rows)
            wanted = (said[block].to(teacher.dtype) @ teacher.t()).float().softmax(-1)
            logs = (features[block] @ weight.t()).log_softmax(-1)
            loss -= torch.dot(wanted.view(-1), logs.view(-1))
            gradient = logs.exp_().sub_(wanted)  # of the logits
            torch.matmul(gradient, weight, out=grad_features[block])
            grad_weight.addmm_(gradient.t(), features[block])
        ctx.save_for_backward(grad_features, grad_weight)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_features, grad_weight = ctx.saved_tensors
        return grad_features.mul_(grad), grad_weight.mul_(grad), None, None

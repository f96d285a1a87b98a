"""Cross-entropy of the target positions, fused with the output layer: no whole-pack logits in memory.

Only target positions get logits (in SFT the prompt's are skipped). They are computed a block of rows at a time, in
fp32, and each block's gradient is taken at once, so that peak memory is a block and not positions x vocabulary: 32768
positions x 152064 entries in fp32 would be 20 GB, a block is at most :data:`BLOCK_BYTES`. Under tensor parallelism
each rank holds a slice of the vocabulary; a row's maximum, sum of exponentials and target logit are combined over the
group.

With bf16 weights on a GPU, logits and the sum of the weight's gradients leave the matrix unit in fp32. On a CPU, which
has no such products, both are rounded to bf16 on the way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Of one block of logits on a GPU. Every block reads and writes the weight's whole gradient (fp32): few and large ones
# are faster. 2 GiB are 3,500 rows of Qwen's vocabulary.
BLOCK_BYTES = 2 << 30
DEVICE_SHARE = 32  # a block takes at most this part of a GPU's memory
CPU_BLOCK_BYTES = 2 << 20  # on CPU a block that stays in the cache is faster


def gpu_block_bytes(memory: int | None = None) -> int:
    """Return the bytes of a block of fp32 logits on a GPU with ``memory`` bytes (None: enough)."""
    return BLOCK_BYTES if memory is None else min(BLOCK_BYTES, memory // DEVICE_SHARE)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Sum over rows of -log softmax(hidden @ weight^T)[label]: a scalar in fp32.

    hidden [n, h]; weight [V / TP, h], this rank's slice of the vocabulary; labels [n] in 0..V-1; ``group`` the
    tensor-parallel group. Under tensor parallelism hidden's gradient is this rank's part of a sum over the group: the
    caller's autograd adds it up (as behind any column-parallel layer).
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels, group)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        size = 1 if group is None else group.size()
        labels = labels - (0 if group is None else group.rank() * weight.shape[0])
        wants = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden) if wants else None
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wants else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(64, _block_bytes(hidden.device) // (4 * weight.shape[0]))
        for start in range(0, hidden.shape[0], rows):
            block = slice(start, start + rows)
            probabilities, row_losses, target, owned = _block(hidden[block], weight, labels[block], group, size)
            loss += row_losses.sum()
            if grad_hidden is not None and grad_weight is not None:
                probabilities.scatter_add_(1, target, -owned.unsqueeze(1))  # softmax - one-hot
                grad_logits = probabilities.to(weight.dtype)
                torch.matmul(grad_logits, weight, out=grad_hidden[block])
                if weight.dtype == torch.float32:
                    grad_weight.addmm_(grad_logits.t(), hidden[block])
                elif weight.device.type == "cpu":
                    grad_weight += grad_logits.t() @ hidden[block]
                else:
                    gradient = grad_logits.t()
                    torch.addmm(grad_weight, gradient, hidden[block], out_dtype=torch.float32, out=grad_weight)
                del grad_logits
            del probabilities  # before the next block: two would be in memory at once
        if grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_weight.mul_(grad), None, None


def _block_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return CPU_BLOCK_BYTES
    return gpu_block_bytes(torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None)


def _block(
    hidden: Tensor, weight: Tensor, labels: Tensor, group: dist.ProcessGroup | None, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Softmax [r, V / TP] (fp32), loss of each row [r], target column [r, 1] and 1.0 where it is this rank's."""
    if weight.dtype == torch.float32 or weight.device.type == "cpu":
        logits = (hidden @ weight.t()).float()
    else:
        logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    owned = ((labels >= 0) & (labels < weight.shape[0])).float()
    target = labels.clamp(0, weight.shape[0] - 1).unsqueeze(1)
    top = logits.amax(dim=1, keepdim=True)
    if size > 1:
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    logits.sub_(top)
    at_target = logits.gather(1, target).squeeze(1) * owned
    logits.exp_()
    total = logits.sum(dim=1)
    if size > 1:
        both = torch.stack([total, at_target])
        dist.all_reduce(both, group=group)
        total, at_target = both.unbind()
    logits.div_(total.unsqueeze(1))
    return logits, total.log() - at_target, target, owned

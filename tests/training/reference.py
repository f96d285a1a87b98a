"""The oracle: transformers' model on each sample alone, unpadded, and a plain torch AdamW loop on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.schedule import learning_rate
from tests.training.packs import RandomPacks


@dataclass
class Step:
    loss: float
    norm: float


def load(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def batch_loss(model: torch.nn.Module, batch: list[Pack]) -> torch.Tensor:
    """Mean loss over the batch's trained tokens; samples go through the model one at a time, without their padding."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for pack in batch:
        for a, b in zip(pack.cu_seqlens[:-1], pack.cu_seqlens[1:], strict=True):
            tokens = torch.from_numpy(pack.tokens[a:b]).long()
            labels, loss_mask = torch.from_numpy(pack.labels[a:b]).long(), torch.from_numpy(pack.loss_mask[a:b])
            logits = model(input_ids=tokens.unsqueeze(0)).logits[0]
            total = total + F.cross_entropy(logits[loss_mask], labels[loss_mask], reduction="sum").double()
            count += int(loss_mask.sum())
    return total / count


def gradients(folder: Path) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, gradient norm and gradients of the first batch."""
    model = load(folder)
    loss = batch_loss(model, RandomPacks(1).batch(0))
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    norm = torch.stack([g.double().square().sum() for g in found.values()]).sum().sqrt()
    return float(loss.detach()), float(norm), found


def trajectory(folder: Path, steps: int, config: TrainingConfig) -> tuple[list[Step], dict[str, torch.Tensor]]:
    """A plain single-process AdamW loop: losses and norms of each step, and the final weights."""
    model = load(folder)
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [p for p in parameters.values() if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.epsilon)
    history = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = batch_loss(model, RandomPacks(steps).batch(step))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        optimizer.step()
        history.append(Step(float(loss), float(norm)))
    return history, {name: p.detach() for name, p in parameters.items()}

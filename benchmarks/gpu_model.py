"""Section of gpu.py: loss and gradients of whole models against transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from gpu_inputs import config, random_model, random_packs
from gpu_measure import relative
from torch import Tensor

from nemo_openmath.checkpoints.checkpoint import open_checkpoint
from nemo_openmath.data.packs.pack import Pack, samples_of
from nemo_openmath.models import hf_mapping
from nemo_openmath.models.build import build_model, choose_backend, load_hf, parameters_by_stored_name
from nemo_openmath.models.configs import ModelConfig, preset
from nemo_openmath.models.devices import process_device
from nemo_openmath.training.forward_backward import ForwardBackward, total_loss
from nemo_openmath.training.optimizer import Optimizer
from nemo_openmath.training.runtime import parallel_state_of

if TYPE_CHECKING:
    from gpu import Report


def theirs(model: torch.nn.Module, packs: Sequence[Pack]) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a batch and its gradients by transformers' model, each sample alone."""
    device = process_device()
    model = model.to(device).eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    for sample in (sample for pack in packs for sample in samples_of(pack)):
        logits = model(input_ids=torch.from_numpy(sample.tokens).long()[None].to(device)).logits[0]
        is_target, labels = (torch.from_numpy(x).to(device) for x in (sample.loss_mask, sample.labels))
        total = total + F.cross_entropy(logits[is_target], labels[is_target].long(), reduction="sum").double()
    loss = total / sum(pack.num_target_tokens for pack in packs)
    loss.backward()
    return float(loss.detach()), {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


def ours(
    shape: ModelConfig, folder: Path, packs: Sequence[Pack], settings: dict[str, Any]
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a batch and its gradients, by the names of transformers, as our training computes them."""
    chosen = config(**settings)
    with parallel_state_of(chosen.parallel, 0):
        dtype = torch.bfloat16 if chosen.precision == "bf16" else torch.float32
        models = build_model(shape, chosen.parallel, dtype=dtype, recompute=chosen.recompute, backend=chosen.backend)
        load_hf(models, shape, open_checkpoint(folder).read)
        optimizer = Optimizer.build(models, chosen)
        optimizer.zero_grad()
        forward_backward = ForwardBackward(models, optimizer.chunks, shape, chosen.parallel, None)
        part = forward_backward.run(forward_backward.shard(packs))
        optimizer.gradient_norm()
        gradients: dict[str, Tensor] = {}
        for entry, parameter in parameters_by_stored_name(models, shape).values():
            whole = hf_mapping.split(entry, parameter.main_grad.float().cpu())
            gradients |= dict(zip(dict(entry.sources), whole, strict=True))
        return total_loss(part)[0], gradients


def model(report: Report) -> None:
    """Loss and every gradient against transformers."""
    base = preset("tiny") if report.dry else ModelConfig(4096, 1024, 2816, 6, 8, 2, 128, max_position_embeddings=8192)
    lengths = [[37, 23, 5], [60, 9]] if report.dry else [[2000, 1300, 701, 95], [3900, 190]]
    # bounds of the loss, of all gradients together, of the worst tensor
    runs: dict[str, tuple[dict[str, Any], tuple[float, float, float]]] = {
        "fp32": ({"backend": "local"}, (1e-5, 2e-4, 2e-3))
    }
    for recompute in ("none", "selective", "full"):
        settings = {"precision": "bf16", "backend": "local", "recompute": recompute}
        runs[f"bf16, recompute {recompute}"] = settings, (3e-3, 3e-2, 0.15)
    if choose_backend("auto", torch.bfloat16, process_device()) == "transformer_engine":
        settings = {"precision": "bf16", "backend": "transformer_engine"}
        runs["bf16, TransformerEngine"] = settings, (3e-3, 3e-2, 0.15)
    qwen3 = base.with_changes(model_type="qwen3", tie_word_embeddings=True)
    for kind, shape in (("qwen2", base.with_changes(tie_word_embeddings=False)), ("qwen3, tied", qwen3)):
        with tempfile.TemporaryDirectory() as place:
            folder, packs = Path(place), random_packs(shape.vocab_size, lengths, 0)
            expected, expected_gradients = theirs(random_model(folder, shape), packs)
            for name, (settings, bounds) in runs.items():
                loss, gradients = ours(shape, folder, packs, settings)
                gap = abs(loss - expected) / expected
                report.below(f"{kind}, {name}: loss", gap, bounds[0], ours=loss, transformers=expected)
                flat = [
                    torch.cat([g[n].flatten() for n in expected_gradients]) for g in (gradients, expected_gradients)
                ]
                report.below(f"{kind}, {name}: all gradients", relative(flat[0], flat[1]), bounds[1])
                # a bias of keys shifts all scores of a query alike: its gradient is zero but for rounding
                errors = {n: relative(gradients[n], g) for n, g in expected_gradients.items() if "k_proj.bias" not in n}
                worst = max(errors, key=lambda n: errors[n])
                report.below(f"{kind}, {name}: worst gradient", errors[worst], bounds[2], tensor=worst)

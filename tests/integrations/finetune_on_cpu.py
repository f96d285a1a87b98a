"""``llm.finetune`` over our packs for two steps without a GPU:
`python tests/integrations/finetune_on_cpu.py PACKS LOGS`.

What of NeMo and megatron-core asks for CUDA is bent here, and a plain attention over packed samples stands in for
TransformerEngine's; data module, data step, loss, optimizer and checkpoint are as on GPUs.
"""

from __future__ import annotations

import contextlib
import sys
from itertools import pairwise
from typing import Any

import megatron.core
import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.module import MegatronModule
from nemo import lightning as nl
from nemo.collections import llm
from nemo.lightning.pytorch.optim import MegatronOptimizerModule

from nemo_openmath.integrations.nemo.data_module import PackedDataModule
from nemo_openmath.integrations.nemo.packs import packed_data_step
from nemo_openmath.models import cpu_compat


class SampleAttention(MegatronModule):
    """Causal attention within each segment of ``cu_seqlens``."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config=config)

    def forward(self, *qkv_and_mask: Any, packed_seq_params: Any, **kwargs: Any) -> torch.Tensor:
        q, k, v = (x.squeeze(1) if x.dim() == 4 else x for x in qkv_and_mask[:3])
        out = []
        for start, stop in pairwise(packed_seq_params.cu_seqlens_q.tolist()):
            part = [x[start:stop].transpose(0, 1) for x in (q, k, v)]
            out.append(F.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True).transpose(0, 1))
        return torch.cat(out).flatten(1)


def bend() -> None:
    cpu_compat.SERIES[".".join(megatron.core.__version__.split(".")[:2])] = cpu_compat.SERIES["0.16"]
    cpu_compat.install()
    tensor, to = torch.tensor, torch.Tensor.to
    torch.tensor = lambda *args, pin_memory=False, **kwargs: tensor(*args, **kwargs)
    torch.Tensor.to = lambda self, *args, **kwargs: self if args[:1] == ("cuda",) else to(self, *args, **kwargs)
    torch.cuda.Stream = lambda *args, **kwargs: None
    torch.cuda.stream = lambda *args, **kwargs: contextlib.nullcontext()


def main(packs: str, logs: str) -> None:
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = SampleAttention
    config = llm.Qwen2Config(
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=128,
        num_attention_heads=4,
        num_query_groups=2,
        vocab_size=640,
        seq_length=2048,
        calculate_per_token_loss=True,
        data_step_fn=packed_data_step,
        transformer_layer_spec=spec,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
    )
    trainer = nl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,
        limit_val_batches=0,
        strategy=nl.MegatronStrategy(ckpt_load_strictness="log_all"),
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )
    optimizer = OptimizerConfig(optimizer="adam", lr=1e-3, use_distributed_optimizer=False)
    bend()
    with cpu_compat.cuda_type_names():
        llm.finetune(
            model=llm.Qwen2Model(config=config),
            data=PackedDataModule(packs, 2, 1, num_workers=0),
            trainer=trainer,
            optim=MegatronOptimizerModule(config=optimizer),
            log=nl.NeMoLogger(log_dir=logs, ckpt=None),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

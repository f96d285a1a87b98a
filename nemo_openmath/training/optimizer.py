"""Megatron's data-parallel gradient buffers and optimizer around the model chunks, stepped in the open.

The step is taken apart (gradients ready, norm, check, clip, update), so that a norm that is not finite stops the
training before the weights are touched. Optimizer state is read and written per parameter, in the parameter's own
shape, however the optimizer divides it inside: the checkpoint knows nothing of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer
from torch import Tensor

from nemo_openmath.data.batches.balance import assign
from nemo_openmath.models.build import PackedGPT, accumulate_in_main_gradients
from nemo_openmath.models.cpu_compat import cuda_type_names
from nemo_openmath.training.config import TrainingConfig

STATE_KEYS = ("exp_avg", "exp_avg_sq")


@dataclass
class Optimizer:
    """Model chunks under data parallelism, and what updates them."""

    chunks: list[DistributedDataParallel]
    parts: list[Any]  # megatron optimizers: one, unless megatron-core chains several
    config: TrainingConfig
    updates: int = 0  # Adam steps taken so far

    @classmethod
    def build(cls, models: list[PackedGPT], config: TrainingConfig) -> Optimizer:
        """Wrap ``models`` (weights loaded: the fp32 main weights are copied from them here)."""
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=config.distributed_optimizer,
            overlap_grad_reduce=config.parallel.pp == 1,
        )
        chunks = [
            DistributedDataParallel(model.config, ddp, model, disable_bucketing=number > 0)
            for number, model in enumerate(models)
        ]
        accumulate_in_main_gradients(models)
        bf16 = config.precision == "bf16"
        settings = OptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.beta1,
            adam_beta2=config.beta2,
            adam_eps=config.epsilon,
            clip_grad=config.clip,
            bf16=bf16,
            params_dtype=torch.bfloat16 if bf16 else torch.float32,
            use_distributed_optimizer=config.distributed_optimizer,
        )
        overrides: dict | None = {} if config.decay_norms_and_biases else None
        with cuda_type_names():
            optimizer = get_megatron_optimizer(
                settings, chunks, config_overrides=overrides, use_gloo_process_groups=False
            )
        parts = list(optimizer.chained_optimizers) if isinstance(optimizer, ChainedOptimizer) else [optimizer]
        for part in parts:
            for group in part.optimizer.param_groups if part.optimizer is not None else ():
                if isinstance(part.optimizer, torch.optim.AdamW):
                    group["fused"], group["foreach"] = True, False
        return cls(chunks, parts, config)

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Return the names of the tensors that each parameter has in the optimizer's state."""
        return (*STATE_KEYS, "main") if self.config.precision == "bf16" else STATE_KEYS

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        for part in self.parts:
            part.zero_grad()

    def gradient_norm(self) -> float:
        """Make the summed gradients ready and return their global norm, equal on every rank."""
        squares = 0.0
        for part in self.parts:
            part.prepare_grads()
            squares += part.get_grad_norm() ** 2
        return float(squares**0.5)

    @torch.no_grad()
    def step(self, norm: float, lr: float) -> None:
        """Clip by ``norm`` and update with learning rate ``lr``; weight decay is set per group by its multiplier."""
        scale = self.config.clip / (norm + 1e-6) if self.config.clip > 0 else 1.0
        for part in self.parts:
            if part.optimizer is None:
                continue
            gradients = [p.grad for g in part.optimizer.param_groups for p in g["params"] if p.grad is not None]
            if scale < 1.0 and gradients:
                torch._foreach_mul_(gradients, scale)
            for group in part.optimizer.param_groups:
                group["lr"], group["weight_decay"] = lr, self.config.weight_decay * group["wd_mult"]
            part.step_with_ready_grads()
        self.updates += 1

    # -- state, parameter by parameter ---------------------------------------------------------------------------

    def _locate(self) -> Iterator[tuple[Any, Tensor, Tensor, slice | None]]:
        """Yield (part, model parameter, fp32 main parameter or its shard, the shard's range in the flat parameter); the
        range is None where the main parameter is whole."""
        for part in self.parts:
            if part.optimizer is None:
                continue
            if isinstance(part, DistributedOptimizer):
                for parameter, (group, order) in part.model_param_group_index_map.items():
                    shard = part._get_model_param_range_map(parameter)["param"]
                    main = part.optimizer.param_groups[group]["params"][order]
                    yield part, parameter, main, slice(shard.start, shard.end)
            else:
                mains = {id(getattr(p, "main_param", p)): p for chunk in self.chunks for p in chunk.parameters()}
                for group in part.optimizer.param_groups:
                    for main in group["params"]:
                        yield part, mains[id(main)], main, None

    def share_out(self) -> dict[Tensor, int]:
        """Return, by model parameter, the data-parallel rank (with context parallelism) that writes it to a checkpoint.

        All ranks return the same, and each writes about as much.
        """
        parameters = [p for chunk in self.chunks for p in chunk.parameters()]
        ranks = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
        shares = assign([p.numel() for p in parameters], ranks)
        return {parameters[i]: rank for rank, share in enumerate(shares) for i in share}

    def held_ranges(self) -> dict[Tensor, slice]:
        """Return, by model parameter, the range of its flattened elements whose state this rank holds; parameters
        without any are left out."""
        ranges = ((parameter, part) for _, parameter, _, part in self._locate())
        return {parameter: part or slice(0, parameter.numel()) for parameter, part in ranges}

    @torch.no_grad()
    def full_state(self, receivers: Mapping[Tensor, int]) -> dict[Tensor, dict[str, Tensor]]:
        """Return, by model parameter, fp32 tensors of its shape: exp_avg, exp_avg_sq and, in bf16, the main weight.

        With the distributed optimizer a parameter's tensors are put together from the shards by the data-parallel rank
        that ``receivers`` names, and only that rank returns them; otherwise every rank returns all.
        """
        own: dict[Tensor, tuple[slice | None, dict[str, Tensor]]] = {}
        for part, parameter, main, shard in self._locate():
            state = part.optimizer.state.get(main, {})
            values = {key: state[key] if key in state else torch.zeros_like(main) for key in STATE_KEYS}
            if self.config.precision == "bf16":
                values["main"] = main
            own[parameter] = (shard, values)
        if not self.config.distributed_optimizer:
            return {p: {key: t.detach() for key, t in values.items()} for p, (_, values) in own.items()}
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        full: dict[Tensor, dict[str, Tensor]] = {}
        for parameter in (p for chunk in self.chunks for p in chunk.parameters()):  # the same order on every rank
            receiver = receivers[parameter]
            shard, values = own.get(parameter, (None, {}))
            tensors = {}
            for key in self.state_keys:
                flat = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
                if shard is not None and key in values:
                    flat[shard] = values[key]
                dist.reduce(flat, group=group, group_dst=receiver)
                if group.rank() == receiver:
                    tensors[key] = flat.view(parameter.shape).to("cpu")
            if group.rank() == receiver:
                full[parameter] = tensors
        return full

    @torch.no_grad()
    def load_state(self, states: dict[Tensor, dict[str, Tensor]], updates: int) -> None:
        """Take over the state of the elements that :meth:`held_ranges` names: the inverse of :meth:`full_state`.

        ``states`` is emptied, because its tensors on the host are taken over. Each parameter gets a step counter of its
        own: a shared one would be counted up once per parameter and update.
        """
        self.updates = updates
        for part, parameter, main, _ in self._locate():
            tensors = states.pop(parameter)
            if "main" in tensors:
                main.copy_(tensors["main"].view(main.shape))
            state: dict[str, Any] = {key: tensors[key].view(main.shape).to(main.device) for key in STATE_KEYS}
            if isinstance(part.optimizer, torch.optim.AdamW):
                state["step"] = torch.tensor(float(updates), device=main.device if main.is_cuda else "cpu")
            else:  # TransformerEngine's and Apex's fused Adam count per group
                for group in part.optimizer.param_groups:
                    group["step"] = updates
            part.optimizer.state[main] = state

"""Build Megatron's GPT model of a :class:`ModelConfig` for one process of a layout; load Hugging Face weights."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_openmath.core.errors import MissingExtra, UserError
from nemo_openmath.models import hf_mapping
from nemo_openmath.models.attention import PackedAttention
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.devices import process_device
from nemo_openmath.models.layout import LayerBackend, Parallel, Recompute
from nemo_openmath.models.loss import linear_cross_entropy
from nemo_openmath.models.norm import RMSNorm
from nemo_openmath.models.packed import PackedBatch


class PackedGPT(GPTModel):
    """Megatron's GPT on one :class:`PackedBatch`, given as ``packed_seq_params``.

    Output of the last stage: the sum of -log p(label) over the target tokens of this context rank (fp32 scalar).
    Output of earlier stages: hidden states [t, 1, hidden].
    """

    def _postprocess(self, hidden_states: Tensor, *_: Any, **rest: Any) -> Tensor:
        if not self.post_process:
            return hidden_states
        batch: PackedBatch = rest["packed_seq_params"]
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        group = self.pg_collection.tp
        if self.config.sequence_parallel:
            hidden_states = tensor_parallel.gather_from_sequence_parallel_region(hidden_states, group=group)
        elif group.size() > 1:
            hidden_states = tensor_parallel.copy_to_tensor_model_parallel_region(hidden_states, group=group)
        rows = hidden_states.squeeze(1)
        if batch.target_positions is not None:
            rows = rows.index_select(0, batch.target_positions)
        return linear_cross_entropy(rows, weight, batch.labels, group)


class SwiGLU(MLP):
    """Megatron's MLP without its two extra passes over memory (an offset of zero, a clamp of nothing)."""

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        gate_up, _bias = self.linear_fc1(hidden_states)
        output, _bias = self.linear_fc2(_Gate.apply(gate_up))
        return output, None


class _Gate(torch.autograd.Function):
    """silu(gate) * up of [..., 2 f] laid as [gate, up]; both gradients are written where they belong, not joined."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        activated = F.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        out = torch.empty_like(gate_up)
        grad_gate, grad_up = out.chunk(2, dim=-1)
        torch.mul(grad, activated, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return out


def choose_backend(
    backend: LayerBackend, dtype: torch.dtype, device: torch.device
) -> Literal["local", "transformer_engine"]:
    """Return the layers to use: with ``auto`` TransformerEngine's in bf16 on a GPU where megatron-core can use it, else
    our own.

    TransformerEngine multiplies fp32 matrices in TF32 (``cublaslt_gemm.cu``), and has no attention in fp32 under
    context parallelism. Raises UserError, or MissingExtra, where it is asked for and cannot be had.
    """
    if backend == "local" or (backend == "auto" and (dtype != torch.bfloat16 or device.type != "cuda")):
        return "local"
    installed = importlib.util.find_spec("transformer_engine") is not None
    if installed and _megatron_uses_transformer_engine():
        problem = "it multiplies fp32 in TF32" if dtype != torch.bfloat16 else "it computes on GPUs alone"
        if dtype == torch.bfloat16 and device.type == "cuda":
            return "transformer_engine"
    elif backend == "auto":
        return "local"
    elif not installed:
        raise MissingExtra("transformer-engine", "gpu", "training.backend = transformer_engine")
    else:
        problem = "megatron-core cannot import from the version that is installed"
    raise UserError(
        f"training.backend = transformer_engine: {problem}",
        remedy="set training.backend to local, or train in bf16 on GPUs with a version that megatron-core knows",
    )


def _megatron_uses_transformer_engine() -> bool:
    from megatron.core.extensions import transformer_engine

    return bool(transformer_engine.HAVE_TE)


def transformer_config(
    model: ModelConfig,
    parallel: Parallel,
    *,
    dtype: torch.dtype = torch.float32,
    recompute: Recompute = "none",
    backend: Literal["local", "transformer_engine"] = "local",
    device: torch.device | None = None,
) -> TransformerConfig:
    """Return megatron-core's configuration of ``model``, to be built on ``device`` (:func:`process_device`).

    TransformerEngine's layers take their own kernels for the rotation, which knows context-parallel ranks, and for
    SwiGLU; without, megatron-core asks the GPU for the samples' lengths in every layer, and keeps 5 instead of 2
    activations of the MLP.
    """
    bf16, cpu = dtype == torch.bfloat16, (device or process_device()).type == "cpu"
    fused = backend == "transformer_engine"
    checkpointing: dict[str, Any] = {}
    if recompute == "selective":
        checkpointing = {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    elif recompute == "full":
        checkpointing = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    return TransformerConfig(
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=model.qkv_bias,
        qk_layernorm=model.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.vpp if parallel.vpp > 1 else None,
        context_parallel_size=parallel.cp,
        sequence_parallel=parallel.sequence_parallel,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # With two stages a rank's next and previous neighbour are one: batched sends between them would be matched
        # wrongly.
        overlap_p2p_comm=parallel.vpp > 1,
        batch_p2p_comm=parallel.vpp == 1,
        bf16=bf16,
        init_method_std=model.initializer_range,
        use_cpu_initialization=cpu,
        perform_initialization=False,  # weights come from HF or a checkpoint
        bias_activation_fusion=fused,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,  # TransformerEngine's layers: accumulate_in_main_gradients
        apply_rope_fusion=fused,
        deterministic_mode=torch.are_deterministic_algorithms_enabled(),
        # gradients are summed over ranks; the loss is already divided (training/forward_backward.py)
        calculate_per_token_loss=True,
        deallocate_pipeline_outputs=not cpu,  # gloo still sends from the tensor when megatron-core would empty it
        **checkpointing,
    )


def layer_spec(model: ModelConfig, backend: Literal["local", "transformer_engine"]) -> Any:
    """Return the layers' modules.

    Local: ours for attention, norms and MLP around megatron-core's parallel linear layers.
    """
    if backend == "transformer_engine":
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=model.qk_norm)
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=model.qk_norm)
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    attention = layer.self_attention.submodules
    attention.core_attention = PackedAttention
    if model.qk_norm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    if isinstance(layer.mlp, functools.partial):  # megatron-core 0.18 and later
        layer.mlp = functools.partial(SwiGLU.as_mlp_submodule, **layer.mlp.keywords)
    else:
        layer.mlp.module = SwiGLU
    return spec


def build_model(
    model: ModelConfig,
    parallel: Parallel,
    *,
    dtype: torch.dtype = torch.float32,
    recompute: Recompute = "none",
    backend: LayerBackend = "auto",
    device: torch.device | None = None,
) -> list[PackedGPT]:
    """Build this process's model chunks (one, or ``parallel.vpp`` when interleaved) on ``device``
    (:func:`process_device`), weights uninitialised.

    megatron-core's parallel state must be initialised for ``parallel``. Raises what :func:`choose_backend` raises.
    """
    device = device or process_device()
    chosen = choose_backend(backend, dtype, device)
    config = transformer_config(model, parallel, dtype=dtype, recompute=recompute, backend=chosen, device=device)
    chunks = []
    for stage in range(parallel.vpp):
        vp_stage = stage if parallel.vpp > 1 else None
        spec: Any = layer_spec(model, chosen)
        chunk = PackedGPT(
            config=config,
            transformer_layer_spec=_block_spec(config, spec, chosen, vp_stage),
            vocab_size=model.vocab_size,
            max_sequence_length=model.max_position_embeddings,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
            parallel_output=True,
            share_embeddings_and_output_weights=model.tie_word_embeddings,
            position_embedding_type="none" if chosen == "local" else "rope",
            rotary_base=model.rope_theta,
            vp_stage=vp_stage,
        )
        if chosen == "transformer_engine":
            keep_one_table_of_angles(chunk.rotary_pos_emb)
        chunks.append(chunk.to(device, dtype))
    _mark_tensor_parallel(chunks, model)
    return chunks


def keep_one_table_of_angles(rotary: Any) -> None:
    """Let megatron-core's rotary embedding keep the angles [longest, 1, 1, head_dim] of the last pack alone.

    It keeps 32 such tables, one for each length of a pack's longest sample, of 16 MB for 32K tokens.
    """
    rotary.forward = functools.lru_cache(1)(inspect.unwrap(type(rotary).forward).__get__(rotary))


def accumulate_in_main_gradients(models: Iterable[torch.nn.Module]) -> None:
    """Let TransformerEngine's layers add the gradients of weights to the fp32 sums (``main_grad``, which data
    parallelism has made) within the product, without a bf16 gradient that is written, read and rounded.

    megatron-core's setting for it asks for Apex, too, for its output layer, which computes nothing here.
    """
    for module in (module for model in models for module in model.modules()):
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True  # type: ignore[assignment]


def _mark_tensor_parallel(chunks: Iterable[PackedGPT], model: ModelConfig) -> None:
    """Say which parameters are slices: the gradient norm counts those on every rank and the others once.
    (megatron-core does it while it initialises weights, which we skip.)"""
    for entry, parameter in parameters_by_stored_name(chunks, model).values():
        if entry.tp_axis is not None:
            for name in ("tensor_model_parallel", "partition_dim", "partition_stride"):
                if hasattr(parameter, name):
                    delattr(parameter, name)
            tensor_parallel.set_tensor_model_parallel_attributes(parameter, True, entry.tp_axis, entry.tp_blocks)


def _block_spec(config: TransformerConfig, layer: Any, backend: str, vp_stage: int | None) -> Any:
    if backend == "transformer_engine":
        return layer
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)


def parameters_by_stored_name(
    chunks: Iterable[PackedGPT], model: ModelConfig
) -> dict[str, tuple[hf_mapping.StoredTensor, Tensor]]:
    """Return each parameter of this process under its stored name, with its entry of the table.

    A tied output layer of a last stage appears as the embedding (under pipeline parallelism both the first and the last
    stage hold one).
    """
    entries = hf_mapping.stored_tensors(model)
    by_name: dict[str, tuple[hf_mapping.StoredTensor, Tensor]] = {}
    for chunk in chunks:
        parameters = dict(chunk.named_parameters())
        layers = chunk.decoder.layers
        offset, count = (layers[0].layer_number - 1 if len(layers) else 0), len(layers)
        fused = any(name.endswith("layer_norm_weight") for name in parameters)
        for entry in entries:
            if entry.layer is not None and not offset <= entry.layer < offset + count:
                continue
            parameter = parameters.pop(entry.local_name(offset, fused_norms=fused), None)
            if parameter is not None:
                by_name[entry.name] = (entry, parameter)
        tied = parameters.pop("output_layer.weight", None)
        if tied is not None:
            by_name["output_layer.weight"] = (entries[0], tied)
        if parameters:
            raise RuntimeError(f"parameters that no mapping names: {sorted(parameters)}")
    return by_name


@torch.no_grad()
def load_hf(chunks: Iterable[PackedGPT], model: ModelConfig, read: Callable[[str], Tensor]) -> None:
    """Copy this process's slices of Hugging Face weights into its chunks. ``read(hf_name)`` gives one full tensor."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    rank = parallel_state.get_tensor_model_parallel_rank()
    for entry, parameter in parameters_by_stored_name(chunks, model).values():
        full = hf_mapping.join(entry, hf_mapping.read_sources(entry, read))
        parameter.copy_(hf_mapping.tp_slice(entry, full, size, rank))

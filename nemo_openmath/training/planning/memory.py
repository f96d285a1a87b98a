"""Bytes that one rank of a training holds, by kind. The numbers follow what our trainer allocates on a GPU.

- Weights, gradients and optimizer state are the parameters of models/build.py as training/optimizer.py keeps them: fp32
  gradient sums, Adam's two moments, and in bf16 an fp32 main weight. The distributed optimizer splits moments and main
  weights, not the gradients, over data- and context-parallel ranks.
- Activations are the tensors that autograd keeps, layer by layer (the local layers of models/build.py with flash
  attention, or TransformerEngine's with its fused rotation and SwiGLU). Compare arXiv 2205.05198, sections 4 and 5,
  whose layer has dropout, GELU and unfused attention.
- Logits are the peak of models/loss.py: blocks of rows and the gradients that it computes at once, never positions x
  vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.layout import Exchange, Parallel, Precision, Recompute

RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)

# Assumptions: no GPU was at hand to measure them.
FIXED_RESERVE = 2 << 30  # CUDA context, cuBLAS workspaces, kernels
COMMUNICATORS = 4 << 30  # NCCL's buffers where there is more than one GPU: 3 to 6 GB on nodes of 8 Hopper GPUs
FRAGMENTATION = 0.10  # of what is allocated and freed during a step: sizes change with every pack


@dataclass(frozen=True)
class Layout:
    """How a training is spread over GPUs, and what it recomputes."""

    parallel: Parallel
    data_parallel: int
    distributed_optimizer: bool
    recompute: Recompute
    exchange: Exchange = "all_gather"
    """How context ranks bring keys to one another."""
    transformer_engine: bool = False
    """Whether the layers are TransformerEngine's."""

    @property
    def fixed_reserve(self) -> int:
        """Return the bytes of a GPU that no tensor of a training gets."""
        return FIXED_RESERVE + (COMMUNICATORS if self.gpus > 1 else 0)

    @property
    def gpus(self) -> int:
        """Return the number of ranks."""
        return self.parallel.model_parallel * self.data_parallel


@dataclass(frozen=True)
class States:
    """Bytes that stay from step to step."""

    weights: int
    gradients: int
    optimizer: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU at the step's peak. The kinds add up to it."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # kept for the backward pass
    logits: int  # the loss's own tensors, beside all activations
    backward: int  # gradients and recomputed tensors of one layer, as far as they exceed the logits (freed by then)
    reserve: int

    @property
    def total(self) -> int:
        """Return the sum of all kinds."""
        return sum(vars(self).values())


def stage_parameters(model: ModelConfig, parallel: Parallel, stage: int) -> int:
    """Return how many parameters a rank of pipeline stage ``stage`` (0 .. pp - 1) holds.

    Tensor parallelism slices matrices and QKV biases, not norms. A tied embedding is held by the first and by the last
    stage.
    """
    h, tp = model.hidden_size, parallel.tp
    q, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    sliced = h * (2 * q + 2 * kv) + 3 * h * model.intermediate_size + (q + 2 * kv if model.qkv_bias else 0)
    layer = sliced // tp + 2 * h + (2 * model.head_dim if model.qk_norm else 0)
    vocabulary = model.vocab_size * h // tp
    first, last = stage == 0, stage == parallel.pp - 1
    total = model.num_hidden_layers // parallel.pp * layer
    total += vocabulary if first else 0
    total += h if last else 0
    total += vocabulary if last and not (first and model.tie_word_embeddings) else 0
    return total


def states(model: ModelConfig, layout: Layout, precision: Precision, stage: int = 0) -> States:
    """Return the bytes of weights, gradients and optimizer state of a rank, without the buffers' padding of some kB."""
    count = stage_parameters(model, layout.parallel, stage)
    bf16 = precision == "bf16"
    shards = layout.data_parallel * layout.parallel.cp if layout.distributed_optimizer else 1
    return States(count * (2 if bf16 else 4), 4 * count, -(-count // shards) * (12 if bf16 else 8))


@dataclass(frozen=True)
class HostMemory:
    """Bytes of the host's memory that a rank needs for checkpoints, beside the training itself."""

    saving: int  # copies that are written while the training goes on
    loading: int  # optimizer state on its way to the GPU


def host_memory(model: ModelConfig, layout: Layout, precision: Precision) -> HostMemory:
    """Return the host memory of the fullest rank.

    For saving, data-parallel ranks share out the parameters, each with weight and optimizer state, one parameter at
    least. For loading, a rank holds the state that it keeps, in whole rows (training/shards.py).
    """
    count = max(stage_parameters(model, layout.parallel, stage) for stage in range(layout.parallel.pp))
    largest = max(model.vocab_size * model.hidden_size, 2 * model.hidden_size * model.intermediate_size)
    state = 12 if precision == "bf16" else 8
    ranks = layout.data_parallel * layout.parallel.cp
    share = max(-(-count // ranks), min(count, largest // layout.parallel.tp))
    loaded = -(-count // ranks) if layout.distributed_optimizer else count
    return HostMemory(share * (_width(precision) + state), loaded * state)


def layer_activations(
    model: ModelConfig, layout: Layout, tokens: int, precision: Precision, recompute: Recompute | None = None
) -> int:
    """Return the bytes that one layer keeps for its backward pass, for ``tokens`` of this context rank; with
    ``recompute`` instead of the layout's."""
    parallel, recompute = layout.parallel, recompute or layout.recompute
    width, heads, groups = _width(precision), model.num_attention_heads, model.num_key_value_heads
    tp = parallel.tp
    split = tp if parallel.sequence_parallel else 1
    hidden = tokens * model.hidden_size * width // split
    if recompute == "full":
        return hidden  # the layer's input
    q = tokens * heads * model.head_dim * width // tp
    kv = tokens * groups * model.head_dim * width // tp  # keys alone
    projected = q + 2 * kv  # the output of the QKV product: kept whole while a view of it is
    copied = q if groups > tp else 0  # queries are cut out of it by a copy unless there is one group
    scales = 4 * tokens
    norms_and_inputs = 4 * hidden + 2 * scales // split  # inputs of both norms, of the QKV and of the first MLP product
    # gate, up, silu(gate), their product; TransformerEngine's layers compute silu(gate) again
    mlp = (3 if layout.transformer_engine else 4) * tokens * model.intermediate_size * width // tp
    total = norms_and_inputs + mlp + q  # q: the output projection's input
    if model.qk_norm:
        total += (copied or 0) + projected + scales * (heads + groups) // tp
    if recompute == "selective":  # attention's inputs, before rotation
        return total + (q + kv if model.qk_norm else projected + copied)
    return total + attention_tensors(model, layout, tokens, precision)


def attention_tensors(model: ModelConfig, layout: Layout, tokens: int, precision: Precision) -> int:
    """Return the bytes of :func:`layer_activations` that the attention itself keeps. With recomputation they come back
    in the backward pass, one layer at a time."""
    width, tp, cp = _width(precision), layout.parallel.tp, layout.parallel.cp
    q = tokens * model.num_attention_heads * model.head_dim * width // tp
    kv = tokens * model.num_key_value_heads * model.head_dim * width // tp
    statistics = 4 * tokens * model.num_attention_heads // tp  # flash attention's log-sum-exp
    if cp == 1 or layout.exchange == "ring":
        return q + 2 * kv + statistics  # rotated queries and keys, values; the output is the projection's input
    # Both zig-zag chunks have their own queries, outputs and copies of the keys and values they see: on every rank
    # 2 x CP + 1 of the pack's 2 x CP chunks in all.
    return 2 * q + (2 * cp + 1) * kv + statistics


def _attention_backward(model: ModelConfig, layout: Layout, tokens: int, precision: Precision) -> int:
    """Return the bytes of gradients inside the attention's backward pass."""
    if layout.parallel.cp == 1 or layout.exchange == "all_gather":
        return attention_tensors(model, layout, tokens, precision)  # gradients are as large as what they are of
    width, tp = _width(precision), layout.parallel.tp
    queries = tokens * model.num_attention_heads * model.head_dim // tp  # numbers
    keys_values = 2 * tokens * model.num_key_value_heads * model.head_dim // tp
    # Late queries, outputs and their gradients; the sum over blocks in fp32, a block's part of it.
    of_queries = queries * (3 * width // 2 + 4 + width)
    # Keys at hand and on their way; their gradients' sums (fp32) likewise; a block's part.
    return of_queries + keys_values * (2 * width + 2 * 4 + width)


def batch_bytes(model: ModelConfig, layout: Layout, tokens: int) -> int:
    """Return the bytes of a micro-batch: token and label ids, positions, indices of target positions, rotary angles,
    and the plan of its exchange (models/context_plan.py)."""
    plan, cp = 0, layout.parallel.cp
    if cp > 1 and not layout.transformer_engine:
        # both chunks' indices; with the all-gather t queries, (CP + 1/2) t keys, and the way back
        plan = 8 * tokens if layout.exchange == "ring" else 4 * (2 * cp + 5) * tokens
    return tokens * (4 * 8 + 4 * model.head_dim) + plan


def in_flight(parallel: Parallel, stage: int, micro_batches: int) -> int:
    """Return how many chunks' activations a stage holds at once, a chunk of each micro-batch counted once (1F1B and
    interleaved 1F1B, arXiv 2104.04473, section 2.2)."""
    if parallel.vpp == 1:
        return min(parallel.pp - stage, micro_batches)
    warm_up = 2 * (parallel.pp - stage - 1) + (parallel.vpp - 1) * parallel.pp
    return min(warm_up + 1, micro_batches * parallel.vpp)


def loss_peak(
    model: ModelConfig,
    parallel: Parallel,
    tokens: int,
    target_tokens: int,
    precision: Precision,
    gpu_memory: int | None = None,
) -> int:
    """Return the peak bytes of the fused loss (models/loss.py) for ``target_tokens`` of ``tokens`` positions, on a GPU
    with ``gpu_memory`` bytes."""
    from nemo_openmath.models.loss import gpu_block_bytes

    width, h = _width(precision), model.hidden_size
    vocabulary = model.vocab_size // parallel.tp
    block = min(target_tokens, max(64, gpu_block_bytes(gpu_memory) // (4 * vocabulary))) * vocabulary
    normed = tokens * h * width // (parallel.tp if parallel.sequence_parallel else 1)  # what the rows are picked from
    gathered = tokens * h * width if parallel.sequence_parallel else 0
    rows = target_tokens * h * width
    blocks = (4 if width == 4 else 6) * block  # probabilities in fp32, and their gradient in bf16
    return normed + gathered + 2 * rows + 4 * vocabulary * h + blocks


def backward_peak(model: ModelConfig, layout: Layout, tokens: int, precision: Precision) -> int:
    """Return the bytes of the gradients alive inside one layer's backward pass, and of what is recomputed for it.

    They are those of the MLP or of the attention, whichever is more. What the layer kept is let go as its gradients
    come.
    """
    parallel, recompute = layout.parallel, layout.recompute
    width, h, f = _width(precision), model.hidden_size, model.intermediate_size // parallel.tp
    split = parallel.tp if parallel.sequence_parallel else 1
    hidden = width * (2 * tokens * h // split + tokens * h + (2 * tokens * h if split > 1 else 0))
    mlp = width * (2 * tokens * f + 2 * f * h)
    attention = _attention_backward(model, layout, tokens, precision)
    if recompute == "full":
        return hidden + layer_activations(model, layout, tokens, precision, "none") + max(mlp, attention)
    again = attention_tensors(model, layout, tokens, precision) if recompute == "selective" else 0
    return hidden + max(mlp, attention + again)


def memory(
    model: ModelConfig,
    layout: Layout,
    *,
    capacity: int,
    micro_batches: int,
    precision: Precision = "bf16",
    target_share: float = 1.0,
    gpu_memory: int | None = None,
) -> Memory:
    """Return the memory of the fullest pipeline stage's ranks.

    ``capacity`` are the tokens of a pack, ``target_share`` is the share of them in the loss, ``micro_batches`` are the
    packs of each replica in a step. ``gpu_memory`` (bytes) decides how large the loss's blocks are; None: it has enough
    for the largest.
    """
    # Of the stages between the first and the last, which hold the same layers, the earliest holds the most chunks.
    stages = [
        _stage(model, layout, stage, capacity, micro_batches, precision, target_share, gpu_memory)
        for stage in sorted({0, min(1, layout.parallel.pp - 1), layout.parallel.pp - 1})
    ]
    return max(stages, key=lambda stage: stage.total)


def rank_tokens(parallel: Parallel, capacity: int) -> int:
    """Return the tokens of a full pack that one context rank holds, the layout's padding included."""
    return -(-capacity // parallel.pack_multiple) * parallel.pack_multiple // parallel.cp


def _stage(
    model: ModelConfig,
    layout: Layout,
    stage: int,
    capacity: int,
    micro_batches: int,
    precision: Precision,
    target_share: float,
    gpu_memory: int | None,
) -> Memory:
    parallel = layout.parallel
    tokens = rank_tokens(parallel, capacity)
    lasting = states(model, layout, precision, stage)
    last = stage == parallel.pp - 1
    layers = model.num_hidden_layers // (parallel.pp * parallel.vpp)
    chunks = in_flight(parallel, stage, micro_batches)
    activations = chunks * layers * layer_activations(model, layout, tokens, precision)
    activations += -(-chunks // parallel.vpp) * batch_bytes(model, layout, tokens)
    logits = 0
    if last:
        split = parallel.tp if parallel.sequence_parallel else 1
        activations += tokens * (model.hidden_size * _width(precision) + 4) // split  # the final norm's input
        logits = loss_peak(model, parallel, tokens, round(target_share * tokens), precision, gpu_memory)
    backward = max(0, backward_peak(model, layout, tokens, precision) - logits)
    reserve = layout.fixed_reserve + round(FRAGMENTATION * (activations + logits + backward))
    return Memory(lasting.weights, lasting.gradients, lasting.optimizer, activations, logits, backward, reserve)


def _width(precision: Precision) -> int:
    return 2 if precision == "bf16" else 4

"""Tokens a second of a model on GPUs: what decoding has to read from memory, and what it has to compute.

A step of decoding makes one token of each answer in flight. For it every GPU reads its part of the weights once, and
the keys and values of all answers so far. Both take the data sheet's bandwidth times a share that is assumed; products
take the data sheet's bf16 peak times another one. The slower of the two counts, for the weights and for the attention
apart (a roofline: Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009). Tensor-parallel GPUs wait
for each other twice a layer. Nothing of it was measured; a server's scheduling, and answers that end at different
times, are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.recipe.costs.assumptions import CostAssumptions
from nemo_openmath.recipe.costs.models import RecipeModel
from nemo_openmath.training.planning.gpus import Gpu
from nemo_openmath.training.planning.speed import LINK_EFFICIENCY

MEMORY_USED = 0.9  # of a GPU's memory, by a server; vLLM's default
ALL_REDUCE_SECONDS = 20e-6  # of a small sum over the GPUs of a node; assumed
REPLICAS = (1, 2, 4, 8, 16, 32)  # GPUs of a server, where nothing says how many


@dataclass(frozen=True)
class DecodedModel:
    """What decoding needs to know of a model. Bytes and FLOPs are those of the whole model."""

    weight_bytes: float
    flops: float
    """Of the products with weights, for one token."""
    cache_bytes: float
    """Keys and values of one token."""
    attention_flops: float
    """Of one token, for each token before it."""
    layers: int
    hidden_size: int
    cache_heads: int
    """Heads of keys and values; beyond as many, tensor-parallel GPUs hold copies."""


# deepseek-ai/DeepSeek-R1, config.json and model card: 671B parameters, of which a token uses 37B; 689 GB in FP8. 61
# layers, 128 heads; a token's cache is one latent of 512 + 64 numbers a layer, of which each GPU holds a copy.
_R1_LAYERS, _R1_LATENT, _R1_ROPE, _R1_HEADS = 61, 512, 64, 128
DEEPSEEK_R1 = DecodedModel(
    weight_bytes=689e9,
    flops=2 * 37e9,
    cache_bytes=2.0 * _R1_LAYERS * (_R1_LATENT + _R1_ROPE),
    attention_flops=2.0 * _R1_LAYERS * _R1_HEADS * (2 * _R1_LATENT + _R1_ROPE),
    layers=_R1_LAYERS,
    hidden_size=7168,
    cache_heads=1,
)
_OTHERS = {"deepseek-r1": DEEPSEEK_R1, "deepseek-v3": DEEPSEEK_R1}


@dataclass(frozen=True)
class AnswerShape:
    """What one mean answer is."""

    prompt: float
    """Tokens of its prompt."""
    tokens: float
    """That are decoded."""
    together: int = 1
    """Answers to the same prompt at the same time, of which the server keeps the prompt once."""

    @property
    def context(self) -> float:
        """Return the tokens that a step of decoding looks back on, in the mean."""
        return self.prompt + self.tokens / 2

    @property
    def stored(self) -> float:
        """Return the tokens that the server keeps for it, in the mean."""
        return self.prompt / self.together + self.tokens / 2


@dataclass(frozen=True)
class Decoding:
    """How fast one server decodes."""

    gpus: int
    """Of the server."""
    in_flight: float
    """Answers that are decoded at once."""
    tokens_per_gpu: float
    """Tokens a second, divided by the server's GPUs."""


def decoded_model(model: RecipeModel) -> DecodedModel | None:
    """Return what decoding needs to know of a model, in bf16; None of one that is neither there nor known."""
    if model.config is None:
        return _OTHERS.get(model.name.lower())
    return of_config(model.config)


def of_config(config: ModelConfig) -> DecodedModel:
    """Return what decoding needs to know of a dense model in bf16."""
    embeddings = (
        0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    )  # looked up, not multiplied
    return DecodedModel(
        weight_bytes=2.0 * config.num_parameters,
        flops=2.0 * (config.num_parameters - embeddings),
        cache_bytes=2.0 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim,
        attention_flops=4.0 * config.num_hidden_layers * config.num_attention_heads * config.head_dim,
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        cache_heads=config.num_key_value_heads,
    )


def decoding(
    model: DecodedModel,
    gpu: Gpu,
    assumptions: CostAssumptions,
    *,
    gpus: int,
    asked: float,
    answer: AnswerShape,
    pipeline: int = 1,
) -> Decoding | None:
    """Return the speed of a server of ``gpus`` GPUs, ``pipeline`` groups of them, that ``asked`` answers are asked of.

    None where the model, and one answer, do not fit.
    """
    tensor = gpus // pipeline
    token_bytes = model.cache_bytes * tensor / min(tensor, model.cache_heads)  # on all GPUs together
    room = MEMORY_USED * gpus * gpu.memory - model.weight_bytes
    if room < answer.context * token_bytes:
        return None
    in_flight = min(asked, room / (answer.stored * token_bytes))
    cached = answer.context * token_bytes  # read for each answer
    bandwidth = gpus * gpu.memory_bandwidth * assumptions.memory_share
    peak = gpus * gpu.peak * assumptions.compute_share
    # each group of a pipeline works on its part of the answers, and reads its weights for every part
    seconds = max(pipeline * model.weight_bytes / bandwidth, in_flight * model.flops / peak)
    seconds += max(in_flight * cached / bandwidth, in_flight * answer.context * model.attention_flops / peak)
    if tensor > 1:
        rate = LINK_EFFICIENCY * gpu.bandwidth(tensor, tensor)
        sent = 2 * (tensor - 1) / tensor * in_flight * model.hidden_size * 2 / rate
        seconds += 2 * model.layers * (pipeline * ALL_REDUCE_SECONDS + sent)
    return Decoding(gpus, in_flight, in_flight / seconds / gpus)


def best_decoding(
    model: DecodedModel, gpu: Gpu, assumptions: CostAssumptions, *, job_gpus: int, asked: float, answer: AnswerShape
) -> Decoding | None:
    """Return the fastest server of ``model`` where a job of ``job_gpus`` GPUs holds as many of them as it can, which
    share ``asked`` answers. A model that no job holds gets as many jobs as it needs."""
    choices: list[Decoding] = []
    for gpus in REPLICAS:
        servers = max(1, job_gpus // gpus)
        pipeline = max(1, gpus // gpu.per_node)
        choice = decoding(model, gpu, assumptions, gpus=gpus, asked=asked / servers, answer=answer, pipeline=pipeline)
        if choice is not None and (gpus <= job_gpus or not choices):
            choices.append(choice)
    return max(choices, key=lambda choice: choice.tokens_per_gpu, default=None)


def prompt_seconds(model: DecodedModel, gpu: Gpu, assumptions: CostAssumptions, tokens: float) -> float:
    """Return the GPU seconds that a prompt of so many tokens takes: its products, and its attention."""
    flops = tokens * model.flops + tokens**2 / 2 * model.attention_flops
    return flops / (gpu.peak * assumptions.compute_share)

"""Model configurations: the Qwen2 family (Qwen2.5, Qwen2.5-Math) and dense Qwen3, read from and written to HF
config.json.

A :class:`ModelConfig` uses the field names of Hugging Face's ``config.json``, so any Qwen2 or Qwen3 folder can be the
start of a training. The Math bases get RoPE base 500000 (arXiv 2504.16891, section 5.1) and 131072 positions (the
reference code): their own 10000 and 4096 are too short for 32768-token solutions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.models.hf_config import describe

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_UNSCALED = "give the model without it, or set rope_scaling to null if it was trained so"


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a dense decoder with RoPE, RMSNorm, SwiGLU and grouped-query attention."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 1_000_000.0
    max_position_embeddings: int = 131_072
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    model_type: str = "qwen2"  # qwen2: biases on Q, K, V; qwen3: RMSNorm on each query and key head instead
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES:
            raise UserError(f"model_type {self.model_type!r} is not supported", remedy="use qwen2 or qwen3 (dense)")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"{self.num_attention_heads} attention heads are not a multiple of {self.num_key_value_heads} KV heads",
                remedy="change num_key_value_heads",
            )

    @property
    def qkv_bias(self) -> bool:
        return self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.model_type == "qwen3"

    @property
    def num_parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * q + 2 * kv) + (q + 2 * kv if self.qkv_bias else 0)
        attention += 2 * self.head_dim if self.qk_norm else 0
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * layer + self.hidden_size

    def flops(self, tokens: int, sum_squared_lengths: int, num_target_tokens: int | None = None) -> float:
        """Return the FLOPs of one forward and backward pass (no recomputation), causal attention counted as half.

        ``sum_squared_lengths`` is the sum over samples of length squared: what attention costs in a pack.
        ``num_target_tokens``: positions whose logits are computed (all of them when None).
        """
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        layer = self.hidden_size * (2 * q + 2 * kv) + 3 * self.hidden_size * self.intermediate_size
        head = self.hidden_size * self.vocab_size * (tokens if num_target_tokens is None else num_target_tokens)
        attention = self.num_hidden_layers * q * sum_squared_lengths  # QK^T and AV, 2 FLOPs each, half masked
        return 3.0 * (2 * (tokens * self.num_hidden_layers * layer + head) + 2 * attention)

    @classmethod
    def from_hf(cls, folder: str | Path, *, quantized: bool = False) -> ModelConfig:
        """Read ``folder/config.json`` (see :mod:`nemo_openmath.models.hf_config`) as a model that training computes.

        ``quantized``: accept a folder of quantized weights. Raises UserError naming the field that is not computed.
        """
        shape = describe(folder, quantized=quantized)
        path, kind = shape.file, shape.model_type
        for wrong, problem, remedy in (
            (kind not in ARCHITECTURES, f"model_type {kind!r} is not supported", "use a Qwen2 or dense Qwen3 model"),
            (shape.rope.kind != "default", f"RoPE scaling {shape.rope.kind!r} is not supported", _UNSCALED),
            (shape.o_bias, "attention_bias is true: biases of a Qwen3 are not computed", "use a model without them"),
            (
                shape.attention_dropout > 0,
                f"attention_dropout is {shape.attention_dropout:g}: no dropout is computed",
                "set it to 0.0",
            ),
        ):
            if wrong:
                raise UserError(problem, file=path, remedy=remedy)
        eos = shape.raw.get("eos_token_id")
        names = {field.name for field in fields(cls)} & {field.name for field in fields(shape)}
        return cls(
            **{name: getattr(shape, name) for name in names},
            rope_theta=shape.theta,
            bos_token_id=shape.raw.get("bos_token_id"),
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            pad_token_id=shape.raw.get("pad_token_id"),
        )

    def to_hf(self, dtype: str = "bfloat16") -> dict[str, Any]:
        """The content of ``config.json``. RoPE is written in both forms: transformers 5 reads ``rope_parameters``,
        vLLM's and TensorRT-LLM's older readers ``rope_theta`` (else they fall back to base 10000). The version is that
        of transformers' form: without one, its releases up to 5.19 warn that the tokenizer splits wrongly, and the
        remedy they name would make it do so."""
        eos = self.eos_token_id
        return {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            **{key: getattr(self, key) for key in _REQUIRED},
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "attention_dropout": 0.0,
            "attention_bias": self.qkv_bias,
            "use_sliding_window": False,
            "use_cache": True,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "pad_token_id": self.pad_token_id,
            "dtype": dtype,
            "torch_dtype": dtype,
            "transformers_version": "5.0.0",
        }

    def with_changes(self, **changes: Any) -> ModelConfig:
        """Return a copy with some fields changed, e.g. ``rope_theta=500000.0``."""
        return replace(self, **changes)


_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def _qwen25(hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, **rest: Any) -> ModelConfig:
    return ModelConfig(vocab, hidden, inner, layers, heads, kv, hidden // heads, eos_token_id=151643, **rest)


def _qwen3(hidden: int, inner: int, layers: int, heads: int, tied: bool) -> ModelConfig:
    return ModelConfig(
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=32768,
        tie_word_embeddings=tied,
        model_type="qwen3",
        eos_token_id=151643,
    )


PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(512, 64, 160, 4, 8, 2, 8, max_position_embeddings=4096, tie_word_embeddings=True),
    "qwen2.5-0.5b": _qwen25(896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True, max_position_embeddings=32768),
    "qwen2.5-1.5b": _qwen25(1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True),
    "qwen2.5-3b": _qwen25(2048, 11008, 36, 16, 2, 151936, tie_word_embeddings=True, max_position_embeddings=32768),
    "qwen2.5-7b": _qwen25(3584, 18944, 28, 28, 4, 152064),
    "qwen2.5-14b": _qwen25(5120, 13824, 48, 40, 8, 152064, rms_norm_eps=1e-5),
    "qwen2.5-32b": _qwen25(5120, 27648, 64, 40, 8, 152064, rms_norm_eps=1e-5),
    "qwen2.5-72b": _qwen25(8192, 29568, 80, 64, 8, 152064, rms_norm_eps=1e-5),
    "qwen2.5-math-1.5b": _qwen25(1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True, rope_theta=500_000.0),
    "qwen2.5-math-7b": _qwen25(3584, 18944, 28, 28, 4, 152064, rope_theta=500_000.0),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, False),
    "qwen3-14b": _qwen3(5120, 17408, 40, 40, False),
    "qwen3-32b": _qwen3(5120, 25600, 64, 64, False),
}


def preset(name: str) -> ModelConfig:
    """Return a named configuration. Raises UserError listing the known names."""
    try:
        return PRESETS[name.lower()]
    except KeyError:
        raise UserError(f"no model is named {name!r}", remedy="use one of " + ", ".join(PRESETS)) from None

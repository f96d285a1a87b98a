"""``config.json`` of a Hugging Face model folder: the one reader of it.

:func:`describe` takes every field that changes the numbers of a dense decoder (Qwen2, Qwen3, Llama) or refuses it by
name; transformers' reading of the same file is the measure. Which fields there are:

* taken: sizes, RoPE, norm, biases, tying. They become a :class:`Described`; training (:class:`ModelConfig`) and the
  embedded engine each say which of those they compute.
* :data:`FIXED`: fields that would make another function of the same weights. One value of them is computed.
* :data:`NEUTRAL`: fields that cannot change the numbers, each with the reason.
* all others: transformers' classes do not know them either; :attr:`Described.notes` names them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_openmath.chat.model_files import read_object
from nemo_openmath.core.errors import UserError

ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
QUANT_CONFIG = "hf_quant_config.json"
ADAPTER = "adapter_config.json"

TAKEN = frozenset(
    {"model_type", "architectures", *SIZES, "num_key_value_heads", "head_dim", "attention_bias", "rms_norm_eps"}
    | {"rope_theta", "rope_parameters", "rope_scaling", "original_max_position_embeddings", "max_position_embeddings"}
    | {"tie_word_embeddings", "attention_dropout", "initializer_range", "layer_types", "quantization_config"}
    | {"bos_token_id", "eos_token_id", "pad_token_id", "auto_map"}
)

FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    # field -> values that are computed (a missing field is one of them), what the others would be
    "hidden_act": (("silu", "swish"), "another activation than SiLU"),
    "mlp_bias": ((False, None), "biases in the MLP"),
    "qkv_bias": ((True, None), "attention without its biases"),
    "use_sliding_window": ((False,), "sliding-window attention"),
    "is_causal": ((True,), "attention to later tokens"),
    "use_bidirectional_attention": ((False, None), "attention to later tokens"),
    "attention_chunk_size": ((None,), "attention in chunks"),
    "partial_rotary_factor": ((1, None), "RoPE on a part of each head"),
    "use_mrope": ((False, None), "RoPE of images"),
    "per_layer_config": ((None, {}), "layers that differ from each other"),
    "is_encoder_decoder": ((False, None), "an encoder and a decoder"),
    "add_cross_attention": ((False, None), "attention to an encoder"),
    "compression_config": ((None, {}), "compressed weights"),
    "transformers_weights": ((None,), "weights in a file of another name"),
    "text_config": ((None,), "the model of another configuration within this one"),
    "attribute_map": ((None, {}), "fields under other names"),
}

NEUTRAL: dict[str, str] = {
    # names and versions
    **dict.fromkeys(
        [
            "transformers_version",
            "_name_or_path",
            "name_or_path",
            "_model_name_or_path",
            "model_name",
            "_commit_hash",
            "tokenizer_class",
            "unsloth_version",
            "unsloth_fixed",
            "license",
            "base_model",
        ],
        "says where the folder comes from",
    ),
    # how the weights are held or computed, which training and engine are told by their own settings
    **dict.fromkeys(("dtype", "torch_dtype"), "the stored tensors have their dtypes, computing has its own setting"),
    **dict.fromkeys(("use_cache", "cache_implementation"), "a cache gives the same numbers"),
    **dict.fromkeys(
        [
            "_attn_implementation",
            "attn_implementation",
            "_attn_implementation_autoset",
            "_attn_implementation_internal",
            "_experts_implementation",
            "_experts_implementation_internal",
        ],
        "kernels of one function",
    ),
    **dict.fromkeys(("chunk_size_feed_forward", "pretraining_tp", "gradient_checkpointing"), "slices of one product"),
    "torchscript": "the form of the program, not its result",
    # parts that the models have not
    **dict.fromkeys(("sliding_window", "max_window_layers"), "used with use_sliding_window alone, which is refused"),
    **dict.fromkeys(
        ("id2label", "label2id", "num_labels", "problem_type", "classifier_dropout", "finetuning_task"),
        "of a classifier's head",
    ),
    **dict.fromkeys(
        ("is_decoder", "tie_encoder_decoder", "decoder_start_token_id", "cross_attention_hidden_size", "sep_token_id"),
        "of models with an encoder",
    ),
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "return_dict", "use_return_dict"), "what else is given back"
    ),
}


@dataclass(frozen=True)
class Rope:
    """RoPE as transformers reads it. ``settings``: what belongs to ``kind`` (factor and the like)."""

    kind: str = "default"
    theta: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Described:
    """All that the logits of a dense decoder depend on, beside its weights. ``notes``: lines on fields that nobody
    uses, for whoever opens the folder."""

    file: Path
    raw: Mapping[str, Any]
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    qkv_bias: bool
    o_bias: bool
    qk_norm: bool
    rope: Rope
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    initializer_range: float
    attention_dropout: float
    notes: tuple[str, ...] = ()

    @property
    def theta(self) -> float:
        """RoPE's base. Llama's first configurations have none and mean 10000."""
        if self.rope.theta is None:
            raise UserError("neither rope_theta nor rope_parameters", file=self.file, remedy="add rope_theta")
        return self.rope.theta

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every tensor of the model; tied embeddings have no ``lm_head.weight``."""
        hidden, inner = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.num_hidden_layers):
            at = f"model.layers.{layer}."
            shapes[at + "input_layernorm.weight"] = shapes[at + "post_attention_layernorm.weight"] = (hidden,)
            for letter, rows in (("q", q), ("k", kv), ("v", kv)):
                shapes[f"{at}self_attn.{letter}_proj.weight"] = (rows, hidden)
                if self.qkv_bias:
                    shapes[f"{at}self_attn.{letter}_proj.bias"] = (rows,)
            shapes[at + "self_attn.o_proj.weight"] = (hidden, q)
            if self.o_bias:
                shapes[at + "self_attn.o_proj.bias"] = (hidden,)
            if self.qk_norm:
                shapes[at + "self_attn.q_norm.weight"] = shapes[at + "self_attn.k_norm.weight"] = (self.head_dim,)
            shapes[at + "mlp.gate_proj.weight"] = shapes[at + "mlp.up_proj.weight"] = (inner, hidden)
            shapes[at + "mlp.down_proj.weight"] = (hidden, inner)
        shapes["model.norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object of a model folder. Raises UserError where it is none."""
    if not (folder / name).is_file():
        raise UserError(f"no {name}", file=folder, remedy="give a Hugging Face model folder")
    return read_object(folder / name)


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of any architecture as it is, its sizes found to be sizes, its RoPE settings to be settings.

    Folders whose weights are not those of this file are refused: an adapter's, and those that name another file.
    """
    config, path = read_json(folder, "config.json"), folder / "config.json"
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"holds an adapter ({ADAPTER}), which changes the weights",
            file=folder,
            remedy=f"merge it into the model first, or remove {ADAPTER}",
        )
    if config.get("transformers_weights") is not None:
        problem = f"transformers_weights names {config['transformers_weights']!r} as the weights"
        raise UserError(problem, file=path, remedy="save the weights as model.safetensors and remove the field")
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(config.get(key) or {}, dict):
            raise _wrong(path, key, config[key], "write an object, or null")
    for key in SIZES:
        if key in config:
            _size(path, key, config[key])
    for form in (config, config.get("rope_parameters") or {}, config.get("rope_scaling") or {}):
        if form.get("rope_theta") is not None:
            _number(path, "rope_theta", form["rope_theta"], 0.0)
    return config


def quantization(folder: Path, raw: Mapping[str, Any]) -> str | None:
    """Return what ``config.json`` or ``hf_quant_config.json`` says about quantized weights; None: they are plain."""
    described = raw.get("quantization_config") or raw.get("compression_config")
    if not described and (folder / QUANT_CONFIG).is_file():
        described = read_json(folder, QUANT_CONFIG).get("quantization") or "unknown"
    if described and not isinstance(described, dict):
        return str(described)
    return None if not described else str(described.get("quant_algo") or described.get("quant_method") or "unknown")


def refuse_quantized(folder: Path, raw: Mapping[str, Any]) -> None:
    """Raise UserError for a folder that is said to be quantized: payloads without their scales are other weights."""
    if method := quantization(folder, raw):
        remedy = "give the plain model that it was made from"
        raise UserError(f"is quantized ({method})", file=folder, remedy=remedy)


def rope_of(raw: Mapping[str, Any], path: Path | None = None) -> Rope:
    """Read RoPE as transformers does.

    ``rope_scaling`` counts before ``rope_parameters``, and ``rope_theta`` at the top for what lacks one. Raises
    UserError where two of the forms say different things: programs differ in which they take.
    """
    forms = {key: dict(raw[key]) for key in ("rope_scaling", "rope_parameters") if raw.get(key)}
    settled = {key: _form(path, key, form) for key, form in forms.items()}
    if len(settled) == 2 and settled["rope_scaling"] != settled["rope_parameters"]:
        claims = ", ".join(f"{key} says {kind}" + (f" {rest}" if rest else "") for key, (kind, rest) in settled.items())
        raise UserError(f"{claims}: programs differ in which they take", file=path, remedy="remove the wrong one")
    kind, rest = next(iter(settled.values()), ("default", {}))
    theta = next(iter(forms.values()), {}).get("rope_theta")
    theta = raw.get("rope_theta") if theta is None else theta
    if theta is None and any(form.get("rope_theta") is not None for form in forms.values()):
        problem = "rope_theta is in rope_parameters alone, and rope_scaling is read before it"
        raise UserError(problem, file=path, remedy="remove rope_scaling, or write rope_theta at the top")
    bases = list(dict.fromkeys(float(f["rope_theta"]) for f in (*forms.values(), raw) if f.get("rope_theta")))
    if len(bases) > 1:
        problem = f"says rope_theta {bases[-1]}, and {bases[0]} in its other form: programs differ in which they take"
        raise UserError(problem, file=path, remedy="write the right one in both")
    return Rope(kind, None if theta is None else float(theta), rest)


def _form(path: Path | None, key: str, form: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(kind, its settings without the base) of one form."""
    kinds = {form[name] for name in ("rope_type", "type") if isinstance(form.get(name), str)}
    if any(form.get(name) is not None and not isinstance(form[name], str) for name in ("rope_type", "type")):
        raise UserError(f"{key} names no kind of RoPE: {form}", file=path, remedy="write rope_type as a word")
    kind = str(form.get("rope_type") or form.get("type") or "default")
    if len(kinds) > 1:
        raise UserError(f"{key} names two kinds of RoPE: {sorted(kinds)}", file=path, remedy="remove the wrong one")
    rest = {k: v for k, v in form.items() if k not in ("rope_type", "type", "rope_theta") and v is not None}
    factor = rest.pop("partial_rotary_factor", 1)
    if factor != 1:
        raise _wrong(path, f"{key}.partial_rotary_factor", factor, "RoPE on a part of each head is not computed")
    nested = next((k for k, v in rest.items() if isinstance(v, dict)), None)
    if nested is not None:
        problem = f"{key} has settings of its own for {nested}"
        raise UserError(problem, file=path, remedy="layers that differ from each other are not computed")
    if kind == "default" and rest:
        problem = f"{key} has {', '.join(sorted(rest))}, which means nothing for rope_type default"
        raise UserError(problem, file=path, remedy="remove it, or write the rope_type that it belongs to")
    return kind, rest


def describe(folder: str | Path, *, quantized: bool = False) -> Described:
    """Read ``folder/config.json`` of a Qwen2, Qwen3 or Llama model.

    ``quantized``: accept a folder of quantized weights. Raises UserError naming the first field that asks for something
    that neither training nor the engine computes.
    """
    folder = Path(folder)
    raw, path = read_config(folder), folder / "config.json"
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(f"model_type {kind!r} is not supported", file=path, remedy="use a dense Qwen2, Qwen3 or Llama")
    _check_architectures(path, kind, raw)
    if not quantized:
        refuse_quantized(folder, raw)
    _check_fields(path, kind, raw)
    hidden, heads = raw["hidden_size"], raw["num_attention_heads"]
    groups = raw.get("num_key_value_heads") or heads
    if heads % groups:
        raise UserError(
            f"{heads} attention heads are not a multiple of {groups} KV heads",
            file=path,
            remedy="change num_key_value_heads",
        )
    # transformers' Qwen3Config has 128 where the file has none; the others divide
    size = raw.get("head_dim") or (128 if kind == "qwen3" else hidden // heads)
    if size % 2:
        raise _wrong(path, "head_dim", size, "RoPE needs an even number")
    tied, biases = (_truth(path, key, raw.get(key, False)) for key in ("tie_word_embeddings", "attention_bias"))
    eps = _number(path, "rms_norm_eps", raw.get("rms_norm_eps", 1e-6), 0.0)
    dropout = _number(path, "attention_dropout", raw.get("attention_dropout", 0.0), 0.0)
    rope = rope_of(raw, path)
    if kind == "llama" and rope.theta is None:
        rope = Rope(rope.kind, 10_000.0, rope.settings)
    _check_token_ids(path, raw)
    return Described(
        file=path,
        raw=raw,
        model_type=kind,
        **{key: raw[key] for key in SIZES},
        num_key_value_heads=groups,
        head_dim=size,
        qkv_bias=kind == "qwen2" or biases,
        o_bias=kind != "qwen2" and biases,
        qk_norm=kind == "qwen3",
        rope=rope,
        rms_norm_eps=eps,
        max_position_embeddings=raw.get("max_position_embeddings", 2048 if kind == "llama" else 32768),
        tie_word_embeddings=tied,
        initializer_range=_number(path, "initializer_range", raw.get("initializer_range", 0.02), 0.0),
        attention_dropout=dropout,
        notes=tuple(_notes(path, kind, raw)),
    )


def _check_fields(path: Path, kind: str, raw: Mapping[str, Any]) -> None:
    """Refuse values that are not computed, missing sizes, layers that differ, and sizes that are none."""
    for key, (allowed, other) in FIXED.items():
        if key in raw and not any(raw[key] == value and type(raw[key]) in _like(value) for value in allowed):
            raise UserError(
                f"{key} is {raw[key]!r}: {other}, which is not computed", file=path, remedy=_remedy(key, allowed)
            )
    missing = next((key for key in SIZES if key not in raw), None)
    if missing is not None:
        raise UserError(f"{missing!r} is missing", file=path, remedy=f"use a complete {kind} config.json")
    listed, layers = raw.get("layer_types"), raw["num_hidden_layers"]
    if listed is not None and listed != ["full_attention"] * layers:
        what = "sliding-window attention" if "sliding_attention" in listed else f"layer_types for {layers} layers"
        raise _wrong(path, "layer_types", _shortened(listed), f"{what}: only full_attention in each layer is computed")
    for key, nullable in (
        ("num_key_value_heads", True),
        ("max_position_embeddings", False),
        ("head_dim", kind == "llama"),
    ):
        if key in raw and not (nullable and raw[key] is None):
            _size(path, key, raw[key])


def _check_token_ids(path: Path, raw: Mapping[str, Any]) -> None:
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = raw.get(key)
        for number in ids if isinstance(ids, list) and key == "eos_token_id" else [ids]:
            if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
                raise _wrong(path, key, ids, "write the id of a token")


def _check_architectures(path: Path, kind: str, raw: Mapping[str, Any]) -> None:
    listed = raw.get("architectures")
    if listed and listed != [ARCHITECTURES[kind]]:
        problem = f"architectures {listed!r} and model_type {kind!r} do not belong together"
        raise UserError(problem, file=path, remedy=f"give a model with the architecture {ARCHITECTURES[kind]}")
    custom = raw.get("auto_map", {})
    if not isinstance(custom, dict) or any(str(name).startswith(("AutoModel", "AutoConfig")) for name in custom):
        problem = f"auto_map says that the model is computed by a program of its own ({custom})"
        raise UserError(problem, file=path, remedy=f"remove auto_map if {ARCHITECTURES[kind]} computes the same")


def _notes(path: Path, kind: str, raw: Mapping[str, Any]) -> list[str]:
    unknown = sorted(raw.keys() - TAKEN - FIXED.keys() - NEUTRAL.keys())
    return [f"{path}: not used, here as in transformers' {ARCHITECTURES[kind]}: {', '.join(unknown)}"] * bool(unknown)


def _like(value: Any) -> tuple[type, ...]:
    """Types that a value like this one may have: True is not 1 here."""
    return (int, float) if isinstance(value, int | float) and not isinstance(value, bool) else (type(value),)


def _remedy(key: str, allowed: tuple[Any, ...]) -> str:
    return f"give another model, or set {key} to {json.dumps(allowed[0])} if that is what it was trained with"


def _wrong(path: Path | None, key: str, value: Any, remedy: str) -> UserError:
    return UserError(f"{key} is {value!r}", file=path, remedy=remedy)


def _size(path: Path, key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(path, key, value, "write the model's number")


def _number(path: Path, key: str, value: Any, least: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < least:
        raise _wrong(path, key, value, "write the model's number")
    return float(value)


def _truth(path: Path, key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(path, key, value, "write true or false")
    return value


def _shortened(listed: Any) -> Any:
    return listed if not isinstance(listed, list) or len(listed) < 6 else [*listed[:4], "..."]


_logged: set[str] = set()


def once(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return ``say`` that says each line one time in this process: a command opens its folders more than once."""

    def speak(line: str) -> None:
        if line not in _logged:
            _logged.add(line)
            say(line)

    return speak

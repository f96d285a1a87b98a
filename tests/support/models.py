"""Small random models as folders: every norm and bias differs from its default, so that a mistake shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2ForCausalLM

from nemo_openmath.checkpoints.convert import hf_to_megatron
from nemo_openmath.checkpoints.formats import step_folders
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.hf_mapping import stored_tensors
from tests.support.tokenizers import transformers_tokenizer

# 6 heads in 2 groups: fewer groups than TP 4 can slice evenly is tested with WIDE; 107 is divisible by nothing
TIED = ModelConfig(107, 48, 80, 4, 6, 2, 8, max_position_embeddings=256, tie_word_embeddings=True, eos_token_id=1)
UNTIED = TIED.with_changes(tie_word_embeddings=False)
WIDE = ModelConfig(107, 64, 80, 4, 8, 2, 8, max_position_embeddings=256, eos_token_id=1)
QWEN3 = UNTIED.with_changes(model_type="qwen3")


def random_tensors(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for entry in stored_tensors(config):
        for name, shape in entry.sources:
            value = torch.randn(shape, generator=generator)
            value = 1 + 0.2 * value if "norm" in name else 0.2 * value
            tensors[name] = value.to(dtype)
    return tensors


def make(folder: Path, config: ModelConfig = UNTIED, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A Hugging Face folder with a tokenizer file."""
    folder.mkdir(parents=True)
    save_file(random_tensors(config, seed, dtype), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_hf(str(dtype).removeprefix("torch."))))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def make_step(root: Path, step: int, source: Path, /, **training: Any) -> Path:
    """A checkpoint folder of ``source``'s weights, as a training saves them after ``step``; ``training``: its facts."""
    folder = hf_to_megatron(source, step_folders.step_folder(root, step))
    manifest = folder / step_folders.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"step": step, "training": training}))
    return folder


def load(folder: Path) -> dict[str, Tensor]:
    """All tensors, read by the safetensors library."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def logits(folder: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """transformers' logits [2, 12, vocab] of a fixed batch."""
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    return model(tokens()).logits


def tokens() -> Tensor:
    return torch.arange(24).view(2, 12) * 7 % 107


def save_random(folder: Path, kind: str = "qwen2", seed: int = 0, vocab: int = 512, **changes: Any) -> Path:
    """A random model of transformers' own making, with a tokenizer; norms, biases, logits are far from trivial."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    sizes = {
        "vocab_size": vocab,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.15,
        "eos_token_id": 2,
    } | changes
    config, model = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[kind]
    torch.manual_seed(seed)
    net = model(config(**sizes))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
    net.save_pretrained(folder)
    transformers_tokenizer(vocab).save_pretrained(folder)
    return folder

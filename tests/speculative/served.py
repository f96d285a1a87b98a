"""A small model to draft for, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from nemo_openmath.chat import Author, ChatTokenizer, Message, Span, Transcript
from nemo_openmath.core.records import Generation, RecordWriter
from nemo_openmath.speculative.texts import Text

VOCAB, HIDDEN = 48, 32


@torch.no_grad()
def qwen2(vocab: int = VOCAB, seed: int = 0, layers: int = 2) -> Any:
    """A small model in float32 whose norms and biases are not the identity's."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.25,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    model.model.embed_tokens.weight *= 12  # the last token says most, others enough: what it writes can be guessed
    return model.eval().requires_grad_(False)


def greedy(base: Any, prompt: list[int], tokens: int) -> list[int]:
    """The oracle: transformers' own generation."""
    ids = torch.tensor([prompt])
    out = base.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=10**6,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def own_texts(base: Any, count: int = 256, prompt: int = 6, tokens: int = 40) -> list[Text]:
    """Greedy generations of the base after random prompts."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(base.config.vocab_size, (count, prompt), generator=generator)
    out = base.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=10**6,
        pad_token_id=0,
    )
    own = np.arange(prompt + tokens) >= prompt
    return [Text(row.numpy().astype(np.int32), own) for row in out]


def generations(folder: Path, tokenizer: ChatTokenizer, count: int) -> Path:
    """A folder of solutions with a run of code, two of each problem."""
    with RecordWriter(folder) as writer:
        for i in range(count):
            pieces = (
                Span(Author.MODEL, f"<think>So {i} and {i + 1} make"),
                Span(Author.TOOL, "\n\n```output\n4\n```\n"),
                Span(Author.MODEL, f"{2 * i + 1}.</think>The answer is \\boxed{{{2 * i + 1}}}."),
            )
            record = Generation(
                id=f"generation-{i}",
                problem_id=f"problem-{i // 2}",
                mode="tir",
                model="m",
                sample=i % 2,
                transcript=Transcript((Message("user", f"{i} + {i + 1}?"),), pieces).to_json(),
                finish="stop",
            )
            writer.commit(record.id, [record])
    return folder

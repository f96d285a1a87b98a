"""Small tokenizers of three families, trained in place: byte-level BPE (Qwen, Llama 3); SentencePiece-like BPE with
byte fallback (Llama 2, Mistral), whose first word gets a space of its own; SentencePiece-like unigram (T5), which takes
the likeliest cut of a whole text instead of merging upwards."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_TEXTS = [
    "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}.",
    "<think> First, note that 12 + 30 = 42. </think> The answer is \\boxed{42}.",
    "```output\n42\n```\n```system\nRemaining code executions: 3. You will not be able to call code\n```\n",
    "import sympy as sp\nprint(sum(range(10)))\nx = sp.symbols('x')\nprint(sp.solve(x**2 - 4))\n",
    "Let n be an integer with n^2 = 2n + 3; então ação, größer, задача, 数学 問題 😀",
] * 4
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOOL = ["<tool_call>", "</tool_call>"]


def byte_level(folder: Path, entries: int = 600) -> Path:
    """As Qwen2.5: byte-level BPE with the tool tags as single tokens."""
    tokenizer = _byte_level(entries)
    tokenizer.add_tokens(TOOL)
    return _save(tokenizer, folder)


def transformers_tokenizer(entries: int = 512) -> PreTrainedTokenizerFast:
    """Byte-level BPE as transformers saves it, without tool tokens."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(entries), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def sentencepiece_like(folder: Path) -> Path:
    """As Llama 2: BPE over text with spaces written as a letter, bytes for what is unknown, no tool tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", *SPECIAL, *(f"<0x{b:02X}>" for b in range(256))]
    tokenizer.train_from_iterator(_TEXTS, trainers.BpeTrainer(vocab_size=700, special_tokens=special))
    return _save(tokenizer, folder)


def unigram(folder: Path) -> Path:
    """Unigram over text whose spaces are written as a letter, bytes for what is unknown, no tool tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>")
    tokenizer.train_from_iterator(_TEXTS, trainer)
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"] += [[f"<0x{b:02X}>", -20.0] for b in range(256)]
    state["model"]["byte_fallback"] = True
    return _save(Tokenizer.from_str(json.dumps(state)), folder)


def _byte_level(entries: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


def _save(tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder

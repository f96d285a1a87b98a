"""The student's tokenizer: byte-level BPE of at most 1024 entries, trained on text of the world, deterministic.

Digits are single tokens, and so are the chat and tool tags. The fixed sentences of the recipe's prompts and notices
are entries of their own: they are the same in every sample, and the student should spend its short context on what
differs. A prompt that a user rewrites still works; it only costs more tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nemo_openmath.chat import ChatTokenizer, load_template
from nemo_openmath.chat.blocks import notice_block
from nemo_openmath.core.tags import CODE_END, CODE_START, THINK_END, THINK_START

VOCABULARY = 1024
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = (CODE_START, CODE_END, THINK_START, THINK_END)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Words with their leading space, single digits, punctuation, line breaks with the indent that follows.
_PRE_TOKENS = r" ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\n+ *| +"
_STUDENT_PROMPTS = ("tir", "cot", "genselect")


def fixed_sentences() -> list[str]:
    """Return the sentences of the student's prompts and of the notices between turns, without the parts that vary."""
    texts = [load_template(name).user for name in _STUDENT_PROMPTS] + [notice_block(1), notice_block(0)]
    sentences: dict[str, None] = {}
    for text in texts:
        for part in re.split(r"\{\w+\}|\d", text):  # places and numbers vary
            for sentence in re.findall(r".*?(?:[.!?](?= )|\n|\Z)", part):
                if len(sentence.split()) >= 3:
                    sentences[sentence.rstrip("\n")] = None
    return sorted(sentences, key=lambda s: (-len(s), s))


def train_tokenizer(corpus: Iterable[str], folder: str | Path, *, vocabulary: int = VOCABULARY) -> ChatTokenizer:
    """Train on the corpus and write a Hugging Face folder (tokenizer.json, tokenizer_config.json)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    added = [AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    added += [AddedToken(text, special=False, normalized=False) for text in (*TAGS, *fixed_sentences())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKENS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(added),
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The entries that are added below never reach the trainer: they are cut out of its text.
    fixed = re.compile("|".join(re.escape(token.content) for token in added))
    tokenizer.train_from_iterator((part for text in corpus for part in fixed.split(text)), trainer)
    tokenizer.add_tokens(added)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return ChatTokenizer.load(folder)

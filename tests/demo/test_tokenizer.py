"""The student's tokenizer and its base model's text: what is one token, and what the base never saw."""

from itertools import chain, islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_openmath.chat import ChatTokenizer, Message, load_template
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.core.tags import CODE_END
from nemo_openmath.demo import make_benchmark, train_tokenizer
from nemo_openmath.demo.corpus import documents, recipe_texts
from nemo_openmath.demo.tokenizer import SPECIAL, TAGS, VOCABULARY
from nemo_openmath.demo.world import find

BASE = Path(__file__).parents[2] / "examples" / "base"


def small(folder: Path) -> ChatTokenizer:
    return train_tokenizer(chain(islice(documents(0), 600), recipe_texts(0, 100)), folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return small(tmp_path_factory.mktemp("tokenizer"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["<tool_call>", "12", "\n\n", "Remaining code executions: "]), st.text())))
def test_any_text_comes_back(tokenizer: ChatTokenizer, parts: list[str]) -> None:
    text = "".join(parts)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_is_one_token(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    assert tokenizer.vocab_size <= VOCABULARY
    assert all(len(tokenizer.encode(text)) == 1 for text in (*SPECIAL, *TAGS, *"0123456789"))
    assert len(tokenizer.encode("print(4096)")) >= 4 + len(tokenizer.encode("print()")) - 1
    prompt = load_template("tir").messages(problem="", total_code_executions=8)
    assert len(tokenizer.prompt_ids(prompt)) <= 20, "the recipe's words are a few tokens"
    assert len(tokenizer.encode(output_block("7") + notice_block(7))) <= 20
    assert tokenizer.render([Message("user", "q")]) == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    again = small(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert (again.folder / "tokenizer.json").read_bytes() == (tokenizer.folder / "tokenizer.json").read_bytes()


def test_the_base_model_never_saw_the_format_or_the_problems() -> None:
    texts = list(islice(documents(0), 4000))
    found = [item for text in texts for _, _, item in find(text)]
    assert len(found) > 2000
    assert {item.pool for item in found} == {"base"}
    for forbidden in (*SPECIAL, *TAGS, "\\boxed", "```", "Remaining code", "Judgment"):
        assert not any(forbidden in text for text in texts)


def test_the_shipped_checkpoint_is_small_and_speaks_its_tokenizer() -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 4 << 20
    shipped = ChatTokenizer.load(BASE)
    assert shipped.vocab_size <= VOCABULARY
    assert len(shipped.encode(f"{CODE_END}{notice_block(3)}")) <= 15
    words = " ".join(item.statement for item in make_benchmark(0, 100))
    assert len(shipped.encode(words)) < 40 * 100

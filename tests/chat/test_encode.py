"""Ids and masks against an independent oracle: authorship by construction."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nemo_openmath.chat import Author, ChatTokenizer, Message, Span, Transcript, encode, load_template
from nemo_openmath.core.errors import UserError

CORPUS = ["Solve the problem 12 + 34 and print(7) é ∑ the answer is", "print(x) for x in range(10)\n\n```output\n"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    return tokenizer


def _sentencepiece_like() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 5, trainer)
    tokenizer.add_special_tokens([AddedToken(s, normalized=False) for s in SPECIAL])
    return tokenizer


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece-like"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = _byte_level() if request.param == "byte-level" else _sentencepiece_like()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
                "{% endfor %}"
                "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            }
        )
    )
    return ChatTokenizer.load(folder)


texts = st.lists(
    st.one_of(st.sampled_from(["<tool_call>", "12", "é", "😀", " ", "\n", "```output\n"]), st.text(max_size=8)),
    max_size=6,
).map("".join)


@settings(max_examples=40, deadline=None)
@given(
    prompt=texts,
    spans=st.lists(st.tuples(st.sampled_from([Author.MODEL, Author.TOOL]), texts), max_size=6),
    finished=st.booleans(),
)
def test_every_id_belongs_to_its_author(
    tokenizer: ChatTokenizer, prompt: str, spans: list[tuple[Author, str]], finished: bool
) -> None:
    transcript = Transcript((Message("user", prompt),), tuple(Span(a, t) for a, t in spans), finished)
    out = encode(transcript, tokenizer)
    expected_ids = tokenizer.prompt_ids(transcript.messages)
    expected = [False] * len(expected_ids)
    for author, text in spans:
        part = tokenizer.encode_text(text, tags=author is Author.MODEL)
        expected_ids += part
        expected += [author is Author.MODEL] * len(part)
    assert out.ids[: len(expected_ids)] == expected_ids
    assert out.loss_mask[: len(expected)] == expected
    assert out.ids[len(expected_ids) :] == ([tokenizer.end_of_turn] if finished else [])
    everything = encode(transcript, tokenizer, train_on_tool_output=True)
    assert sum(everything.loss_mask) == len(out.ids) - len(tokenizer.prompt_ids(transcript.messages))


def test_generated_ids_are_kept_and_not_encoded_again(tokenizer: ChatTokenizer) -> None:
    ids = tuple(tokenizer.encode("p") + tokenizer.encode("rint"))
    assert list(ids) != tokenizer.encode("print"), "the case needs ids that encoding the text would not give"
    transcript = Transcript((Message("user", "q"),), (Span(Author.MODEL, "print", ids),), False, tokenizer.fingerprint)
    assert encode(transcript, tokenizer).ids[-len(ids) :] == list(ids)
    foreign = Transcript(transcript.messages, transcript.spans, False, "another tokenizer")
    assert encode(foreign, tokenizer).ids[-1:] == tokenizer.encode("print")[-1:]


def test_templates_are_inverted_and_checked(tmp_path: Path) -> None:
    template = load_template("tir")
    (message,) = template.messages(problem="Find {x} in \\boxed{} {problem}", total_code_executions=3)
    assert message.content.splitlines()[1].startswith("You may perform up to 3 Python")
    assert template.match(message.content) == {
        "problem": "Find {x} in \\boxed{} {problem}",
        "total_code_executions": "3",
    }
    own = tmp_path / "mine.txt"
    own.write_text("\ufeff[system]\nBe brief.\n[user]\n{problem} \\boxed{}\n")
    turns = load_template("cot", own).messages(problem="1+1")
    assert [(m.role, m.content) for m in turns] == [("system", "Be brief."), ("user", "1+1 \\boxed{}")]
    own.write_text("no place")
    with pytest.raises(UserError, match=r"mine.txt.*\{problem\}"):
        load_template("cot", own)
    with pytest.raises(UserError, match="unknown prompt"):
        load_template("nonsense")


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        ChatTokenizer.load(tmp_path)

"""Published rows -> SFT rows: prompts, budgets, authors, rejects; nothing disappears without a reason."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_openmath.chat import RENDERED, Author, ChatTokenizer, Message, Span, Transcript, encode, load_template
from nemo_openmath.chat.blocks import notice_block, output_block
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Drop, Problem, RecordWriter, SftRow, exact_json
from nemo_openmath.core.records.bodies import NewBody
from nemo_openmath.core.records.key_set import KeySet
from nemo_openmath.core.records.manifest import Manifest, write_manifest
from nemo_openmath.data.rows.conversion import BlockConverter
from nemo_openmath.data.rows.formatting import Formatter, Reject
from nemo_openmath.data.rows.selection import Choice, FormatRules
from nemo_openmath.data.rows.sources import Block, Place, _hub_rows, read_source
from nemo_openmath.data.rows.stages import ReadConfig
from tests.support.rows import make_rows
from tests.support.tokenizers import byte_level, unigram

COT = {
    "problem": "What is 6 * 7?",
    "generated_solution": "<think> 42 </think> The answer is \\boxed{42}.",
    "expected_answer": "42",
    "problem_type": "has_answer_extracted",
    "problem_source": "aops_c6_high_school_olympiads",
    "generation_model": "DeepSeek-R1",
    "pass_rate_72b_tir": "0.25",
    "inference_mode": "cot",
    "used_in_kaggle": True,
}
CALL = "<tool_call>\nprint(6 * 7)\n</tool_call>"
TIR = COT | {
    "generated_solution": f"<think> Let me compute.{CALL}{output_block('42')}{notice_block(4)}"
    "So 42. </think> It is \\boxed{42}.",
    "inference_mode": "tir",
}
GENSELECT = COT | {
    "problem": "You are given 2 solutions. ... 0 to 1",
    "generated_solution": "<think> Both. </think>\nJudgment: 1",
    "pass_rate_72b_tir": "n/a",
    "inference_mode": "genselect",
}


def test_cot_row_gets_the_prompt_of_the_recipe() -> None:
    row = Formatter().format(COT)
    transcript = Transcript.from_json(row.transcript)
    assert [m.content for m in transcript.messages] == [
        "Solve the following math problem. Make sure to put the answer (and only answer) inside \\boxed{}.\n\n"
        "What is 6 * 7?"
    ]
    assert transcript.text == COT["generated_solution"]
    assert (row.mode, row.expected_answer, row.pass_rate) == ("cot", "42", 0.25)


@pytest.mark.parametrize(("remaining", "budget"), [(4, 5), (7, 8), (0, 1)])
def test_tir_budget_and_authors_are_recovered_from_the_text(remaining: int, budget: int) -> None:
    runner = output_block("42") + notice_block(remaining)
    solution = f"<think> Let me compute.{CALL}{runner}So 42. </think> It is \\boxed{{42}}."
    transcript = Transcript.from_json(Formatter().format(TIR | {"generated_solution": solution}).transcript)
    assert f"You may perform up to {budget} Python code calls" in transcript.messages[0].content
    assert [p.text for p in transcript.spans if p.author is Author.TOOL] == [runner]
    assert transcript.text == solution


def test_genselect_prompt_is_taken_as_it_is() -> None:
    row = Formatter().format(GENSELECT)
    assert Transcript.from_json(row.transcript).messages[0].content == GENSELECT["problem"]
    assert (row.mode, row.pass_rate) == ("genselect", None)


CHATML = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 6 * 7?<|im_end|>\n"


def reference(prompt: str, answer: str = "It is \\boxed{42}.") -> Transcript:
    return Transcript.from_json(Formatter().format({"input": prompt, "output": answer}).transcript)


def test_reference_rows_are_a_users_turn_or_turns() -> None:
    plain, chat = reference("What is 6 * 7?"), reference(CHATML, "It is \\boxed{42}.<|im_end|>")
    assert [(m.role, m.content) for m in chat.messages] == [("system", "Be brief."), ("user", "What is 6 * 7?")]
    assert plain.messages == chat.messages[1:]
    assert plain.text == chat.text == "It is \\boxed{42}."
    assert Formatter().format({"input": "What is 6 * 7?", "output": "It is \\boxed{42}."}).mode == "cot"
    assert Formatter().format({"input": "x", "output": TIR["generated_solution"]}).mode == "tir"


@pytest.mark.parametrize(
    "prompt",
    [
        CHATML + "<|im_start|>assistant\n",
        CHATML + "<|im_start|>assistant\n<think>\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n6 * 7?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s>[INST] 6 * 7? [/INST]",
        "<bos><start_of_turn>user\n6 * 7?<end_of_turn>\n<start_of_turn>model\n",
        "<｜begin▁of▁sentence｜><｜User｜>6 * 7?<｜Assistant｜><think>\n",
        "<|user|>\n6 * 7?<|end|>\n<|assistant|>\n",
        "<|im_start|>user<|im_sep|>6 * 7?<|im_end|><|im_start|>assistant<|im_sep|>",
        "<|start|>user<|message|>6 * 7?<|end|><|start|>assistant",
        "<|header_start|>user<|header_end|>\n\n6 * 7?<|eot|><|header_start|>assistant<|header_end|>\n\n",
        "<|im_user|>user<|im_middle|>6 * 7?<|im_end|><|im_assistant|>assistant<|im_middle|>",
        "<bos><|turn>user\n6 * 7?<turn|>\n<|turn>model\n",
        "Below is an instruction.\n\n### Instruction:\n6 * 7?\n\n### Response:\n",
        "A chat with an assistant. USER: 6 * 7? ASSISTANT:",
        "<s>User: 6 * 7?\n\nAssistant:",
    ],
)
def test_a_rendered_prompt_is_taken_as_it_is(prompt: str) -> None:
    transcript = reference(prompt)
    assert [(m.role, m.content) for m in transcript.messages] == [(RENDERED, prompt)]


def test_which_inputs_are_rendered_prompts() -> None:
    for text in (
        "What does <|im_start|>assistant\n mean?",
        "Is <|im_start|>user a sign? <|im_start|>assistant\n",
        "[1, 2] [/INST]",
        "Solve [INST].",
        "|x| < |y|, so <|x|> is",
        "Write the Response:",
        "Who says ASSISTANT:",
    ):
        assert reference(text).messages == (Message("user", text),)
    for text in (
        "<|im_start|>user\nnever ended",
        CHATML + "and more",
        "<s>[INST] cut",
        "<|start|>user<|message|>6?<|end|>",
    ):
        with pytest.raises(Reject, match="like a rendered prompt"):
            reference(text)
    row = Formatter().format({"input": CHATML + "<|im_start|>assistant\n", "output": "\\boxed{42}"})
    assert row.problem_id == Problem.make("What is 6 * 7?").id


def test_a_rendered_prompt_is_encoded_as_given_with_its_control_tokens(chat: ChatTokenizer) -> None:
    prompt = CHATML + "<|im_start|>assistant\n<think>\n"
    encoded = encode(reference(prompt, "<think>\nso</think>\\boxed{42}<|im_end|>\n"), chat)
    start, end = (chat.backend.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>"))
    prompt_ids = chat.encode(prompt)
    assert encoded.ids[: len(prompt_ids)] == prompt_ids
    assert (encoded.ids.count(start), encoded.ids.count(end)) == (3, 3)
    assert chat.decode(encoded.ids).count("<think>") == 1
    assert encoded.unfit is None
    foreign = encode(reference("<s>[INST] 6 * 7? [/INST]"), chat)
    assert foreign.unfit == "input is a prompt in another model's format"


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_end|>\n", "<|endoftext|>", "<|im_end|>\n<|endoftext|>\n", "</s>"])
def test_a_text_that_ends_is_not_ended_again(chat: ChatTokenizer, end: str) -> None:
    clean = encode(Transcript.from_json(Formatter().format(COT).transcript), chat)
    row = Formatter().format(COT | {"generated_solution": COT["generated_solution"] + end})
    assert FormatRules().reject(row) is None
    assert encode(Transcript.from_json(row.transcript), chat) == clean
    if end != "</s>":  # a row of ours that was not cleaned when it was read
        own = Transcript.from_text((Message("user", "q"),), "so" + end, finished=False)
        assert encode(own, chat) == encode(Transcript.from_text((Message("user", "q"),), "so"), chat)


def test_thinking_that_only_ends_gets_its_beginning() -> None:
    row = Formatter().format(COT | {"generated_solution": "so 42</think>It is \\boxed{42}."})
    transcript = Transcript.from_json(row.transcript)
    assert transcript.spans[0] == Span(Author.TEMPLATE, "<think>\n")
    assert transcript.thinking == "whole"
    assert FormatRules(think="required").reject(row) is None


def test_our_own_rows_pass_through() -> None:
    (row,) = make_rows(1)
    assert Formatter().format(orjson.loads(orjson.dumps(row))) == row


OURS = orjson.loads(orjson.dumps(make_rows(1)[0]))
ODD = st.sampled_from(
    [
        *(
            None,
            "",
            0,
            1.5,
            True,
            10**400,
            float("nan"),
            "\ud800",
            b"x",
            "<think>",
            "n/a",
            "0.3",
            Decimal("sNaN"),
            CALL,
        ),
        *("<|im_start|>user\nq<|im_end|>\n", *OURS["transcript"].values()),
    ]
)
VALUES = st.recursive(ODD, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=2), v, max_size=3))


@given(
    st.sampled_from([COT, TIR, GENSELECT, {"input": "1 + 1", "output": "\\boxed{2}"}, OURS, {}]),
    st.dictionaries(st.sampled_from([*COT, "input", "output", *OURS, "x\ud800"]), VALUES, max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_whatever_a_row_holds_it_is_a_sample_or_a_reject(good: dict[str, Any], odd: dict[str, Any]) -> None:
    convert = BlockConverter(
        None, {}, FormatRules(box=False, one_box=False, think="off", blocks=False, judgment=False, turns=False)
    )
    (row,) = convert((0, Block(Place("file", 1), [good | odd]))).rows
    if isinstance(row, Drop):
        orjson.dumps(row.detail)
    else:
        assert isinstance(row.body, NewBody)
        body = orjson.loads(zstandard.decompress(row.body.frame))
        parsed = SftRow.from_json(exact_json.loads(row.line) | {"transcript": body["transcript"]})
        FormatRules().reject(parsed)
        Choice(sources=("olympiad",), max_pass_rate=0.3).reject(parsed)
    if not odd and good:
        assert not isinstance(row, Drop)


@pytest.mark.parametrize("column", ["problem", "generated_solution", "expected_answer", "problem_source"])
def test_half_a_character_is_a_reject_with_its_column(column: str) -> None:
    with pytest.raises(Reject, match=f"{column} is not valid Unicode"):
        Formatter().format(COT | {column: "\ud800"})


def test_own_templates_replace_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "cot.txt").write_text("[system]\nThink.\n[user]\nSolve: {problem}")
    row = Formatter(templates={"cot": load_template("cot", tmp_path / "cot.txt")}).format(COT)
    assert [m["content"] for m in row.transcript["messages"]] == ["Think.", "Solve: What is 6 * 7?"]
    with pytest.raises(UserError, match="no prompt is put around rows of 'genselect'"):
        ReadConfig(prompts={"genselect": tmp_path / "cot.txt"})


def reason(mode: str, solution: str, rules: FormatRules | None = None) -> str | None:
    base = {"cot": COT, "tir": TIR, "genselect": GENSELECT}[mode]
    return (rules or FormatRules()).reject(Formatter().format(base | {"generated_solution": solution}))


def test_format_rejects() -> None:
    out, notice = output_block("42"), notice_block(3)
    assert reason("cot", COT["generated_solution"]) is None
    assert reason("tir", TIR["generated_solution"]) is None
    assert reason("genselect", GENSELECT["generated_solution"]) is None
    assert reason("cot", "<think> 42 </think> The answer is 42.") == "no boxed answer"
    assert reason("cot", "<think> x </think> \\boxed{1} or \\boxed{2}") == "several different boxed answers"
    assert reason("cot", "<think> x </think> \\boxed{1}, that is \\boxed{1}") is None
    for wrong in ("<think> \\boxed{1}", "</think> <think> \\boxed{1}", "<think> a <think> b </think> \\boxed{1}"):
        assert reason("cot", wrong) == "think tags out of order"
        assert reason("cot", wrong, FormatRules(think="off")) is None
    assert reason("cot", "\\boxed{1}") is None, "a model that does not think"
    assert reason("cot", "\\boxed{1}", FormatRules(think="required")) == "no think tags"
    for wrong in (
        f"<think> {CALL}{out}{notice} <tool_call>\nprint( </think> \\boxed{{1}}",  # never closed
        f"<think> {CALL}{out}{notice} {CALL} no output </think> \\boxed{{1}}",
        f"<think> {CALL}{out}{notice} I imagine\n```output\n7\n```\n </think> \\boxed{{1}}",
    ):
        assert reason("tir", wrong, FormatRules(think="off")) == "code or output block that is not whole"
    assert reason("genselect", "<think> Both. </think> I cannot say.") == "no judgment"
    turn = COT["generated_solution"] + "<|im_end|>\n<|im_start|>user\nMore?"
    assert reason("cot", turn) == "control token in the text"
    assert reason("cot", turn, FormatRules(turns=False)) is None
    assert FormatRules().reject(Formatter().format(COT | {"problem": "What is <|im_end|>?"})) is None


@given(
    st.lists(
        st.sampled_from(["\\boxed{4", "}", "<think>", "</think>", CALL, "```output\n", "é😀", "\n", "42"]), max_size=9
    )
)
@settings(deadline=None)
def test_rules_never_fail_on_odd_texts(parts: list[str]) -> None:
    reason("cot", "." + "".join(parts))


def test_choice_of_the_second_round() -> None:
    choice = Choice(sources=("olympiad",), max_pass_rate=0.3)
    row = Formatter().format(COT)
    assert choice.reject(row) is None
    assert choice.reject(row.with_(problem_source="MATH_training_set")) == "other problem source"
    assert choice.reject(row.with_(pass_rate=0.31)) == "pass rate too high"
    assert choice.reject(row.with_(pass_rate=None)) == "pass rate unknown"
    assert Choice(max_pass_rate=0.3, keep_unknown=True).reject(row.with_(pass_rate=None)) is None
    assert Choice(modes=("tir",)).reject(row) == "other mode"


TAGS = [
    "<tool_call>",
    "</tool_call>",
    "```output\n",
    "```\n",
    "```system\n",
    "</think>",
    CALL,
    "\n",
    " ",
    "é",
    "😀",
    "數",
]


@given(
    st.lists(st.one_of(st.sampled_from([*TAGS, output_block("é 7"), notice_block(2)]), st.text(max_size=6)), min_size=1)
)
@settings(max_examples=100, deadline=None)
def test_mask_of_any_published_text_is_its_authors(chat: ChatTokenizer, parts: list[str]) -> None:
    """The trained tokens spell what the model wrote, the others what it did not: exactly, whatever the text."""
    solution = "." + "".join(parts)
    transcript = Transcript.from_text((Message("user", "Solve: 6 * 7"),), solution)
    encoded = encode(transcript, chat)

    spaced = chat.backend.token_to_id("<0x00>") is not None  # a piece gets a space before it, which is the piece's

    def spell(target: bool) -> str:
        return chat.decode([i for i, t in zip(encoded.ids, encoded.loss_mask, strict=True) if t is target])

    def written(author: Author) -> str:
        texts = [p.text.replace("▁", " ") if spaced else p.text for p in transcript.spans if p.author is author]
        return "".join(" " + text if spaced and not text.startswith(" ") else text for text in texts)

    assert transcript.text == solution
    assert spell(True) == written(Author.MODEL) + "<|im_end|>"
    assert spell(False) == chat.render(transcript.messages) + written(Author.TOOL)


@pytest.fixture(scope="module", params=[byte_level, unigram])
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer.load(request.param(tmp_path_factory.mktemp("tokenizer")))


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(r).encode() + b"\n" for r in rows)


def test_every_kind_of_file_reads_the_same(tmp_path: Path) -> None:
    rows = [COT, TIR, GENSELECT]
    (tmp_path / "a.jsonl").write_bytes(lines(rows))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(rows)))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(lines(rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    read_rows = list(read_source(tmp_path))
    numbered = [f"{name}:{row}" for name in ("b.jsonl.gz", "c.jsonl.zst", "d.parquet") for row in (1, 2, 3)]
    bytes_before = [len(lines(rows[:n])) for n in range(3)]
    assert [str(place) for place, _ in read_rows] == [f"a.jsonl:byte {n + 1}" for n in bytes_before] + numbered
    assert [fields for _, fields in read_rows] == rows * 4
    with pytest.raises(UserError, match="no such file"):
        list(read_source(tmp_path / "nothing.jsonl"))
    with pytest.raises(UserError, match="no split given"):
        list(read_source("nvidia/OpenMathReasoning"))


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["train-0.jsonl", "test-0.jsonl"], "train", [0]),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test-00000-of-00001.jsonl"], "train", [0, 1]),
        (["data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl"], "validation", [1]),
        (["train/part-0.jsonl", "test/part-0.jsonl"], "test", [1]),
        (["dev/train_extra.jsonl", "dev/rows.jsonl"], "validation", [1]),
        (["my_train_2.jsonl", "valid.jsonl"], "train", [0]),
        (["cot-00000-of-00001.jsonl", "additional_problems-00000-of-00001.jsonl"], "additional_problems", [1]),
        (["training.jsonl", "constraint.jsonl"], "train", [0]),
        (["v1.5.train.jsonl", "v1.5.test.jsonl"], "train", [0]),
        (
            ["rows.train.jsonl", "rows.dev.jsonl"],
            "test",
            "no file of the split 'test'; splits there: train, validation",
        ),
        (["train.jsonl", "eval.train.jsonl"], "train", "its name names the splits test and train"),
        (["a.jsonl", "b.jsonl"], "train", [0, 1]),
        (["train-0.jsonl", "test-0.jsonl"], None, [0, 1]),
        (["train-0.jsonl", "test-0.jsonl"], "cot", "no file of the split 'cot'; splits there: test, train"),
        (["a.jsonl", "b.jsonl"], "test", "no file of the split 'test'; splits there: none"),
    ],
)
def test_a_split_of_a_folder_is_read_alone(
    tmp_path: Path, names: list[str], split: str | None, chosen: list[int] | str
) -> None:
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines([COT | {"problem": str(number)}]))
    if isinstance(chosen, str):
        with pytest.raises(UserError, match=rf"{tmp_path}.*: {chosen}"):
            list(read_source(tmp_path, split=split))
        return
    problems = [fields["problem"] for _, fields in read_source(tmp_path, split=split)]  # type: ignore[index]
    assert sorted(problems) == [str(n) for n in chosen]


def test_a_file_given_by_itself_is_of_any_split_but_another(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "test.jsonl"):
        (tmp_path / name).write_bytes(lines([COT]))
    assert len(list(read_source(tmp_path / "rows.jsonl", split="train"))) == 1
    with pytest.raises(UserError, match=r"test\.jsonl: no file of the split 'train'; splits there: test"):
        list(read_source(tmp_path / "test.jsonl", split="train"))


def test_a_dataset_is_read_by_name(tmp_path: Path) -> None:
    """By the package itself, from a folder in the Hub's layout. Needs the extra `datasets`, without network."""
    pytest.importorskip("datasets")
    rows = [COT, TIR]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "cot-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: cot\n    path: cot-*.parquet\n---\n"
    )
    assert list(_hub_rows(str(tmp_path), "cot")) == rows


def test_a_stages_own_folder_is_its_records_once_it_has_finished(tmp_path: Path) -> None:
    row, broken = make_rows(1)[0], tmp_path / "stage"
    with RecordWriter(broken) as writer:
        writer.commit("a", [row])
        writer.commit("b", drops=[Drop("no box", "x")])
    with pytest.raises(UserError, match="stage: the folder of a stage that has not finished"):
        list(read_source(broken))
    write_manifest(broken, Manifest("stage", "", "", {}))
    assert [fields["id"] for _, fields in read_source(broken)] == [row.id]  # type: ignore[index]


def test_keys_are_remembered_past_every_merge() -> None:
    keys = [k * 0x9E3779B97F4A7C15 % 2**64 for k in range(70_000)]  # 65536 are merged
    seen = KeySet()
    assert all(seen.add(k) for k in keys)
    assert not any(seen.add(k) for k in keys[::7])

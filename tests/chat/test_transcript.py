"""Pieces and segments: nothing of a text is lost, and the runner's part is found again."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_openmath.chat import Author, Kind, Message, Span, Transcript
from nemo_openmath.chat.blocks import budget_of, judgment_of, notice_block, output_block
from nemo_openmath.grading import extract_answer

USER = (Message("user", "q"),)
CODE = "<tool_call>\nprint(1)\n</tool_call>"
words = st.text(st.characters(exclude_characters="<`", exclude_categories=["Cs"]), max_size=30)
fragments = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<think>",
        "</think>",
        "```output\n",
        "```\n",
        "```system\n",
        "\n",
        "\n\n",
        "é∑😀",
        "a",
    ]
)


@given(st.lists(st.one_of(fragments, words), max_size=20).map("".join))
def test_any_text_is_kept_whole(text: str) -> None:
    transcript = Transcript.from_text(USER, text)
    assert transcript.text == text
    assert "".join(s.text for s in transcript.segments()) == text


@given(st.lists(st.tuples(words, words, st.one_of(words, st.just("```\nx\n"))), min_size=1, max_size=4), words, words)
def test_what_the_runner_wrote_is_parsed_back(blocks: list[tuple[str, str, str]], end: str, summary: str) -> None:
    pieces = []
    for left, (thought, code, output) in reversed(list(enumerate(blocks))):
        pieces.append(Span(Author.MODEL, f"{thought}<tool_call>\n{code}\n</tool_call>"))
        pieces.append(Span(Author.TOOL, output_block(output) + notice_block(left)))
    pieces.append(Span(Author.MODEL, f"z{end}</think>z{summary}"))
    original = Transcript(USER, tuple(pieces))
    parsed = Transcript.from_text(USER, original.text)
    assert parsed.spans == original.spans
    assert parsed.segments() == original.segments()
    assert parsed.code_blocks() == [code.strip("\n") for _, code, _ in reversed(blocks)]
    assert parsed.summary == f"z{summary}".strip()
    assert budget_of(original.text) == len(blocks)
    assert Transcript.from_json(original.to_json()) == original


def test_segments_name_their_kinds() -> None:
    text = (
        "<think>try <tool_call>\nprint(1)\n</tool_call>"
        + output_block("1")
        + notice_block(0)
        + "so 1</think>The answer."
    )
    kinds = [(s.kind, s.body) for s in Transcript.from_text(USER, text).segments()]
    assert [k for k, _ in kinds] == [Kind.REASONING, Kind.CODE, Kind.OUTPUT, Kind.NOTICE, Kind.REASONING, Kind.SUMMARY]
    assert kinds[1][1] == "print(1)"
    assert kinds[2][1] == "1\n"
    assert kinds[3][1].startswith("You have run out")
    assert kinds[5][1] == "The answer."


def test_the_summary_is_what_follows_thinking_or_all_of_it() -> None:
    def read(text: str) -> tuple[str, str | None]:
        transcript = Transcript.from_text(USER, text)
        return transcript.thinking, transcript.summary

    assert read("just text \\boxed{1}") == ("none", "just text \\boxed{1}")
    assert read(f"try {CODE}{output_block('1</think>')}so 1") == ("none", "try so 1")
    assert read("<think>never ended \\boxed{1}") == ("broken", None)
    assert read("<think>a</think>b") == ("whole", "b")
    assert read("<think>a<think>b</think>c")[0] == "broken"
    assert read("a</think>b") == ("broken", "b")
    assert Transcript.from_text(USER, "a</think>b").with_opening().thinking == "whole"
    printed = Transcript.from_text(USER, "\\boxed{1} " + CODE + output_block("</think> \\boxed{9}"))
    assert extract_answer(printed.said).answer == "1", "what a program prints is nobody's answer"
    empty = Span(Author.TEMPLATE, "<think>\n\n</think>\n\n")
    assert Transcript(USER, (empty, Span(Author.MODEL, "b"))).summary == "b"
    again = Transcript(USER, (empty, Span(Author.MODEL, "<think>a</think>b")))
    assert (again.thinking, again.summary) == ("broken", "b"), "a thought behind the one that was closed"
    assert read("first <think>a</think>b")[0] == "broken", "what stands before it was not thought"
    assert read("<think>a</think>b</think>c") == ("broken", "c"), "the summary is what grading looks at"
    assert read("<think>a</think>b <think>c")[1] is None


def test_budget_and_judgment() -> None:
    assert budget_of("nothing") is None
    assert budget_of(notice_block(0) + notice_block(3)) == 1
    assert budget_of(notice_block(7) + notice_block(0)) == 8
    assert judgment_of("Judgment: 3 ... Judgement: [11]") == 11
    assert judgment_of("no verdict") is None
    for text in ("**Judgment:** 3", "**Judgment**: 3", "Judgment: **3**", "**Judgment: [3]**", "judgement: 3."):
        assert judgment_of(text) == 3


@given(st.lists(st.integers(0, 2**24 - 1), max_size=20), st.slices(8))
def test_ids_are_three_bytes_each_in_files(ids: list[int], part: slice) -> None:
    transcript = Transcript(USER, (Span(Author.MODEL, "a", tuple(ids)), Span(Author.TOOL, "b")), tokenizer="t")
    written = transcript.to_json()
    packed = b"".join(i.to_bytes(3, "little") for i in ids)
    assert written["pieces"] == [
        {"author": "model", "text": "a", "ids": base64.b64encode(packed).decode()},
        {"author": "runner", "text": "b"},
    ]
    read = Transcript.from_json(written)
    assert read == transcript
    assert hash(read) == hash(transcript)
    assert read.to_json() == written
    again = read.spans[0].ids
    assert again is not None
    assert (list(again), len(again), list(again[part])) == (ids, len(ids), ids[part])
    assert [again[i] for i in range(-len(ids), len(ids))] == ids * 2
    written["pieces"][0]["ids"] = ids  # as they were written once
    assert Transcript.from_json(written) == transcript


@pytest.mark.parametrize("ids", [(2**24,), (-1,), (1.5,), ("7",)])
def test_ids_that_three_bytes_do_not_hold_are_refused(ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="token ids: "):
        Transcript(USER, (Span(Author.MODEL, "a", ids),)).to_json()


@pytest.mark.parametrize("text", ["AAA", "AAAA AAAA", "AAA=", "AA==", "ééé", "AAAAA==="])
def test_a_text_that_is_no_ids_is_refused(text: str) -> None:
    written = {"messages": [], "pieces": [{"author": "model", "text": "a", "ids": text}]}
    with pytest.raises(ValueError, match="token ids: "):
        Transcript.from_json(written)

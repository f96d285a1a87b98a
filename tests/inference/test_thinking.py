"""One <think> in every sample, whoever wrote it: from any teacher, through the records, to any student's tokens."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import orjson
import pytest
from tokenizers import Tokenizer

from nemo_openmath.chat import Author, ChatTokenizer, Message, Span, Transcript, encode, encode_many
from nemo_openmath.core.engine import Capabilities, Completion, Finish, Request, Usage
from nemo_openmath.core.records import Generation
from nemo_openmath.data.rows.formatting import Formatter
from nemo_openmath.data.rows.selection import FormatRules
from nemo_openmath.data.tokens.tokenization import write_tokens
from nemo_openmath.inference.asking import Rejected, ask, text_after_thinking
from nemo_openmath.inference.rollout import RolloutSettings, roll_out
from nemo_openmath.inference.rollout.answer import answer_of as graded_answer
from nemo_openmath.synthesis.solutions.rows import MakeRows, RowsConfig
from tests.support.engines import LocalEngine

USER = (Message("user", "6 * 7?"),)
THOUGHT, ANSWER = "6 * 7 is 42", "It is \\boxed{42}."
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ENDINGS = {
    "opens": "<|im_start|>assistant\n<think>\n",
    "plain": "<|im_start|>assistant\n",
    "closes": "<|im_start|>assistant\n<think>\n\n</think>\n\n",
}


def chat(folder: Path, like: ChatTokenizer, ending: str, *, think_tokens: bool = False) -> ChatTokenizer:
    """The demo's tokenizer with a template that ends so; without ids for <think>, as Qwen2.5, or with, as Qwen3."""
    folder.mkdir(parents=True, exist_ok=True)
    state = json.loads(like.backend.to_str())
    if not think_tokens:  # the entries stay in the vocabulary, as tokens of nothing
        for token in state["added_tokens"]:
            if token["content"] in ("<think>", "</think>"):
                token["content"] = f"<unused_{token['id']}>"
    Tokenizer.from_str(json.dumps(state)).save(str(folder / "tokenizer.json"))
    template = (
        PLAIN
        + "{% if add_generation_prompt %}"
        + ENDINGS[ending].replace("\n", "\\n").join(("{{ '", "' }}"))
        + "{% endif %}"
    )
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ChatTokenizer.load(folder)


class Teacher(LocalEngine):
    """An engine that says one text, behind each of the three ways of asking."""

    def __init__(self, tokenizer: ChatTokenizer, kind: str, text: str):
        super().__init__(tokenizer)
        self.text = text
        able = Capabilities(kind == "ids", True, True, False, False, False)
        self.capabilities = replace(able, conversations=kind == "chat")
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        ids: tuple[int, ...] = ()
        if self.capabilities.token_ids:
            ids = tuple(self.tokenizer.encode(self.text))
            ids += () if ids[-1] in self.tokenizer.end_ids else (self.tokenizer.end_of_turn,)
        return Completion(self.text, ids, Finish.STOP, None, Usage(1, 0, 9))


# teacher's template, how it is asked, what it then says itself
SAYS = {
    ("opens", "ids"): f"{THOUGHT}\n</think>\n\n{ANSWER}",
    ("opens", "completions in text"): f"{THOUGHT}\n</think>\n\n{ANSWER}",
    ("opens", "chat"): f"{THOUGHT}\n</think>\n\n{ANSWER}",
    ("opens", "chat with a parser"): f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
    ("plain", "ids"): f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
    ("plain", "completions in text"): f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
    ("plain", "chat"): f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
    ("plain", "chat whose own template opens"): f"{THOUGHT}\n</think>\n\n{ANSWER}",
}


@pytest.mark.parametrize("student_ends", ["opens", "plain"])
@pytest.mark.parametrize(("teacher_ends", "kind"), SAYS)
@pytest.mark.parametrize("think_tokens", [False, True])
async def test_every_student_learns_from_every_teacher(
    tmp_path: Path, tokenizer: ChatTokenizer, student_ends: str, teacher_ends: str, kind: str, think_tokens: bool
) -> None:
    teachers = chat(tmp_path / "teacher", tokenizer, teacher_ends, think_tokens=think_tokens)
    said = SAYS[teacher_ends, kind]
    engine = Teacher(teachers, kind.split(" whose")[0].split(" with")[0], said)
    if kind != "ids":  # some servers write the end-of-text token
        engine.text = said + "<|im_end|>\n"
    out = await roll_out(engine, teachers, USER, RolloutSettings(), seed=1, key="k")
    assert out.transcript.text == f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}", "one text, whoever wrote which part"
    assert (out.transcript.thinking, out.transcript.summary) == ("whole", ANSWER)
    model = "".join(p.text for p in out.transcript.spans if p.author is Author.MODEL)
    assert model == said, "the template is the author of what the model did not write"
    generation = Generation(
        id="g", problem_id="p", mode="cot", model="m", sample=0, transcript=out.transcript.to_json(), finish="stop"
    )
    assert graded_answer(generation) == "42"

    (row,) = (await MakeRows(RowsConfig()).process((generation, None), None)).records  # type: ignore[arg-type]
    student = chat(tmp_path / "student", tokenizer, student_ends, think_tokens=think_tokens)
    (tmp_path / "rows.jsonl").write_bytes(orjson.dumps(row) + b"\n")
    (sample,) = write_tokens(tmp_path / "rows.jsonl", tmp_path / "student", tmp_path / "tokens", workers=1)
    prompt = student.prompt_ids(USER)
    tail = f"{THOUGHT}\n</think>\n\n{ANSWER}"
    behind = tail if student_ends == "opens" else "<think>\n" + tail
    ids = [*prompt, *student.encode(behind), student.end_of_turn]
    assert sample.tokens.tolist() == ids
    assert sample.loss_mask.tolist() == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    assert student.decode(ids).count("<think>") == student.decode(ids).count("</think>") == 1
    if kind == "ids":  # what was generated is what the teacher itself is trained on
        own = encode(out.transcript, teachers)
        generated = [*teachers.encode(said), teachers.end_of_turn]
        assert own.ids == [*engine.requests[0].prompt, *generated]
        assert own.loss_mask == [False] * (len(own.ids) - len(generated)) + [True] * len(generated)


@pytest.mark.parametrize("begins", ["<think>\n", "<think>", "", " <think>\n\n"])
@pytest.mark.parametrize("student_ends", ["opens", "plain"])
def test_published_solutions_give_one(tmp_path: Path, tokenizer: ChatTokenizer, begins: str, student_ends: str) -> None:
    solution = f"{begins}{THOUGHT}\n</think>\n{ANSWER}"
    row = Formatter().format({"problem": "6 * 7?", "generated_solution": solution, "inference_mode": "cot"})
    assert FormatRules(think="required").reject(row) is None
    student = chat(tmp_path, tokenizer, student_ends)
    transcript = Transcript.from_json(row.transcript)
    encoded = encode(transcript, student)
    prompt = student.prompt_ids(transcript.messages)
    assert encoded.ids[: len(prompt)] == prompt
    assert student.decode(encoded.ids).count("<think>") == 1
    trained = student.decode([i for i, t in zip(encoded.ids, encoded.loss_mask, strict=True) if t])
    assert trained.startswith("<think>") or (student_ends == "opens") or begins.startswith(" ")
    assert trained.count("<think>") == (student_ends == "plain")
    assert trained.endswith(f"{THOUGHT}\n</think>\n{ANSWER}<|im_end|>")


def test_turns_that_a_template_cannot_have_are_left_out_and_counted(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    rows = []
    for solution in (f"<think>{THOUGHT}</think>{ANSWER}", ANSWER):
        rows.append(Formatter().format({"problem": "6 * 7?", "generated_solution": solution}))
    (tmp_path / "rows.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    found: dict[str, Any] = {}
    for ending in ENDINGS:
        chat(tmp_path / ending, tokenizer, ending)
        tokens = write_tokens(tmp_path / "rows.jsonl", tmp_path / ending, tmp_path / f"tokens-{ending}", workers=1)
        found[ending] = ([sample.id for sample in tokens], tokens.dropped)
    assert found == {
        "plain": ([rows[0].id, rows[1].id], {}),
        "opens": ([rows[0].id], {"does not think, where the chat template opens a thought": 1}),
        "closes": ([rows[1].id], {"thinks, where the chat template closes the thought": 1}),
    }


async def test_a_template_that_closes_the_thought_makes_plain_answers(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    teachers, plain = chat(tmp_path / "t", tokenizer, "closes"), chat(tmp_path / "p", tokenizer, "plain")
    out = await roll_out(Teacher(teachers, "ids", ANSWER), teachers, USER, RolloutSettings(), seed=1, key="k")
    assert out.transcript.spans[0] == Span(Author.TEMPLATE, "<think>\n\n</think>\n\n")
    assert (out.transcript.thinking, out.transcript.summary) == ("none", ANSWER)
    assert encode(out.transcript, teachers).unfit is None
    encoded = encode(out.transcript, plain)
    assert encoded.ids == [*plain.prompt_ids(USER), *plain.encode(ANSWER), plain.end_of_turn]


@pytest.mark.parametrize("ending", ENDINGS)
def test_whatever_a_turn_holds_a_sample_has_one_thought_or_is_named(
    tmp_path: Path, tokenizer: ChatTokenizer, ending: str
) -> None:
    """All turns of four parts, behind each thing that a template may have written before them."""
    student = chat(tmp_path, tokenizer, ending)
    code = "<tool_call>print('</think><think>')</tool_call>"
    turns = [
        Transcript(USER, (*lead, Span(Author.MODEL, "".join(parts))), True)
        for parts in product(("<think>", "</think>", "a ", code), repeat=4)
        for lead in ((), (Span(Author.TEMPLATE, "<think>\n"),), (Span(Author.TEMPLATE, ENDINGS["closes"][22:]),))
    ]
    kept = 0
    for turn, encoded in zip(turns, encode_many(turns, student), strict=True):
        if encoded.unfit is None:
            text = student.decode(encoded.ids).replace(code, "")
            tags = [text.count("<think>"), text.count("</think>")]
            assert tags in ([1, 1], [0, 0] if ending == "plain" else [1, 1]), turn.text
            assert text.partition("<think>")[0] in ("", text, student.render(USER).partition("<think>")[0])
            kept += 1
        elif turn.thinking == "whole" and ending != "closes":
            raise AssertionError(f"{turn.text!r}: {encoded.unfit}")
    assert kept >= 20


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
async def test_a_server_that_says_the_end_in_text_and_ids_ends_it_once(
    tmp_path: Path, tokenizer: ChatTokenizer, end: str
) -> None:
    teachers = chat(tmp_path, tokenizer, "plain")
    engine = Teacher(teachers, "ids", ANSWER + end)
    out = await roll_out(engine, teachers, USER, RolloutSettings(), seed=1, key="k")
    assert out.transcript.spans == (Span(Author.MODEL, ANSWER, tuple(teachers.encode(ANSWER))),)
    ids = [*teachers.prompt_ids(USER), *teachers.encode(ANSWER), teachers.end_of_turn]
    assert encode(out.transcript, teachers).ids == ids
    told = Span(Author.MODEL, ANSWER + end, tuple(teachers.encode(ANSWER + end)))  # somebody else's record
    assert encode(replace(out.transcript, spans=(told,), finished=False), teachers).ids == ids
    assert text_after_thinking(ANSWER + end + "\n", teachers, teachers.prompt(USER).opening) == ANSWER


def test_what_opens_a_thought_is_read_off_the_very_prompt(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Some templates look at the texts; a tag that a message ends in is none of theirs."""
    by_text = "{% if '/no' in messages[-1].content %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
    for number, (template, content, opening) in enumerate((
        ("{{ messages[-1].content }}" + by_text, "6 * 7? /no", "<think>\n\n</think>\n\n"),
        ("{{ messages[-1].content }}" + by_text, "6 * 7?", "<think>\n"),
        ("{{ messages[-1].content }}", "6 * 7? <think>", ""),
        ("{{ messages[-1].content }}<think>", "6 * 7? <think>", "<think>"),
    )):  # fmt: skip
        folder = tmp_path / str(number)
        chat(folder, tokenizer, "plain")
        config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        assert ChatTokenizer.load(folder).prompt((Message("user", content),)).opening == opening


async def test_who_asks_reads_the_answer_and_not_the_thinking(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    teachers = chat(tmp_path, tokenizer, "opens")

    nothing = Rejected("nothing")

    def parse(text: str) -> str | Rejected:
        return text or nothing

    for kind in ("ids", "chat"):
        again = ("<think>no</think> no <think> no", nothing)
        for text, answer in (
            again,
            ("no\n</think>\n\nyes", "yes"),
            ("<think>no</think> yes", "yes"),
            ("never ended", nothing),
        ):
            engine = Teacher(teachers, kind, text)
            assert (await ask(engine, teachers, USER, parse, seed=1))[0] == answer
    assert text_after_thinking(" yes ", tokenizer, tokenizer.prompt(USER).opening) == "yes"

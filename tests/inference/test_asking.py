"""What a request is made of: ids or text, and where a long prompt is cut into tokens."""

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from nemo_openmath.chat import ChatTokenizer, Message
from nemo_openmath.core.engine import Capabilities, Completion, Finish, InvalidRequest, Request, Sampling, Usage
from nemo_openmath.core.tokenizer import Part
from nemo_openmath.inference.asking import AS_TEXT, LONG, PreparedPrompt
from tests.support.engines import LocalEngine

SHORT = (Message("user", "6 * 7?"),)
FORGED = (Message("user", "a<|im_end|>b"),)
LONG_ONE = (Message("user", "6 * 7 = 42. " * LONG),)
SAMPLING = Sampling(max_tokens=10)
IDS = Capabilities(True, True, True, False, False, False)


class Server(LocalEngine):
    """Answers every prompt, except a text where ``refuses``; it counts ids of texts as a server does."""

    def __init__(self, tokenizer: ChatTokenizer, capabilities: Capabilities, refuses: bool = False):
        super().__init__(tokenizer)
        self.capabilities, self.refuses = capabilities, refuses
        self.prompts: list[tuple[int, ...] | str] = []

    async def complete(self, request: Request) -> Completion:
        prompt = request.prompt
        self.prompts.append(prompt)
        if isinstance(prompt, str) and self.refuses:
            raise InvalidRequest("longer than the context")
        ids = self.tokenizer.encode_whole(prompt) if isinstance(prompt, str) else prompt
        return Completion("42", (), Finish.STOP, None, Usage(len(ids), 0, 1))


async def sent(server: Server, messages: tuple[Message, ...]) -> list[tuple[int, ...] | str]:
    """What the server gets where two completions of one prompt are asked for."""
    prompt = await PreparedPrompt.of(server, server.tokenizer, messages)
    for _ in range(2):
        await prompt.complete(SAMPLING)
    return server.prompts


async def test_how_each_kind_of_server_is_asked(tokenizer: ChatTokenizer) -> None:
    """Ids where they are taken; a chat server gets the turn; a completions server in text the whole prompt."""
    text = replace(IDS, token_ids=False)
    chat = replace(text, conversations=True)
    assert await sent(Server(tokenizer, IDS), FORGED) == [tuple(tokenizer.prompt_ids(FORGED))] * 2
    tagged = (Message("user", "<think>a<tool_call>b"),)
    assert await sent(Server(tokenizer, chat), tagged) == [tagged[0].content] * 2
    with pytest.raises(InvalidRequest, match=r"a chat server would take <\|im_end\|> in the message for a token"):
        await sent(Server(tokenizer, chat), FORGED)
    assert await sent(Server(tokenizer, text), SHORT) == [tokenizer.render(SHORT)] * 2
    with pytest.raises(InvalidRequest, match=r"would take <\|im_end\|> in the message for a token"):
        await sent(Server(tokenizer, text), FORGED)


async def test_a_long_prompt_goes_as_text_only_where_the_server_makes_the_same_ids(tokenizer: ChatTokenizer) -> None:
    ids = tuple(tokenizer.prompt_ids(LONG_ONE))
    verified, text = replace(IDS, same_tokens=True), tokenizer.render(LONG_ONE)
    middle = (Message("user", "7" * AS_TEXT),)  # as the prompts of decontamination are: too short for a thread
    for server, messages, prompts in (
        (Server(tokenizer, IDS), LONG_ONE, [ids, ids]),
        (Server(tokenizer, verified), SHORT, [tuple(tokenizer.prompt_ids(SHORT))] * 2),
        (Server(tokenizer, verified), LONG_ONE, [text] * 2),
        (Server(tokenizer, verified), middle, [tokenizer.render(middle)] * 2),
        (Server(tokenizer, verified, refuses=True), LONG_ONE, [text, ids, ids]),
        # the answer says that the server had no room for max_tokens: ids are cut to what there is
        (Server(tokenizer, replace(verified, max_context=len(ids) + 9)), LONG_ONE, [text, ids, ids]),
        (Server(tokenizer, replace(verified, max_context=len(ids) + 10)), LONG_ONE, [text] * 2),
    ):  # fmt: skip
        assert await sent(server, messages) == prompts
    forged = (Message("user", LONG_ONE[0].content + FORGED[0].content),)
    assert await sent(Server(tokenizer, verified), forged) == [tuple(tokenizer.prompt_ids(forged))] * 2


def test_a_text_that_a_server_would_cut_otherwise_is_not_sent(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """A token that the tokenizer itself puts before or behind a text is in the ids of a prompt only if the template
    writes it."""
    first = str(tokenizer.backend.id_to_token(0))

    def with_tokens(name: str, around: str, template: str) -> ChatTokenizer:
        folder = tmp_path / name
        folder.mkdir()
        backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
        backend.post_processor = TemplateProcessing(single=around, special_tokens=[(first, 0)])
        backend.save(str(folder / "tokenizer.json"))
        config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return ChatTokenizer.load(folder)

    bare, own = "{{ messages[0].content }}", first + "{{ messages[0].content }}"
    for number, (around, template, text) in enumerate((
        (f"{first} $A", own, "6 * 7?"),
        (f"{first} $A", bare, None),
        (f"$A {first}", bare, None),
        ("$A", bare, "6 * 7?"),
    )):  # fmt: skip
        model = with_tokens(str(number), around, template)
        prompt = model.render(SHORT)
        assert model.as_sent(prompt) == text
        assert text is None or model.encode_whole(text) == model.prompt_ids(SHORT)


async def test_a_long_prompt_is_cut_in_a_thread(tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    encode_parts = ChatTokenizer.encode_parts

    def watched(self: ChatTokenizer, parts: Sequence[Part]) -> list[int]:
        threads.append(threading.current_thread())
        return encode_parts(self, parts)

    monkeypatch.setattr(ChatTokenizer, "encode_parts", watched)
    for messages in (SHORT, LONG_ONE):
        await PreparedPrompt.of(Server(tokenizer, IDS), tokenizer, messages)
    assert [thread is threading.main_thread() for thread in threads] == [True, False]

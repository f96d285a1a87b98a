"""What an engine is asked with, and what of its words is the answer: one rule for whoever asks a model something.

An engine that takes token ids gets ids. A chat server gets the user's turn as it stands, a completions server that is
asked in text the rendered prompt. There a control token in a message would become a token of its own and could end the
turn, so such a message is refused. To a chat server the tags of our protocol are sent all the same: solutions that are
shown to a model hold them, and they end no turn.
"""

from __future__ import annotations

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.chat.transcript import Message
from nemo_openmath.core.engine import Engine, InvalidRequest
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.tags import THINK_END, THINK_START


def prompt_for(engine: Engine, tokenizer: ChatTokenizer, messages: tuple[Message, ...]) -> tuple[int, ...] | str:
    """The prompt of a request. Raises UserError and InvalidRequest for what this engine cannot be asked."""
    if engine.capabilities.token_ids:
        return tuple(tokenizer.prompt_ids(messages))
    if engine.capabilities.renders:
        if [m.role for m in messages] != ["user"]:
            raise UserError(
                f"{engine.model} takes one user turn only", remedy="leave the system turn out of the prompt file"
            )
        if (sign := tokenizer.control_in(messages[0].content)) is not None:
            raise InvalidRequest(
                f"a chat server would take {sign} in the message for a token; ids say it as text (api: completions)"
            )
        return messages[0].content
    prompt = tokenizer.prompt(messages)
    if (forged := next((text for text, literal in prompt.parts if literal), None)) is not None:
        raise InvalidRequest(f"a server that is asked in text would take {forged} in the message for a token")
    return tokenizer.without_first(prompt.text)


def text_after_thinking(text: str, tokenizer: ChatTokenizer, messages: tuple[Message, ...]) -> str:
    """What follows the thinking, without white space around it and without the end-of-text token that some servers
    write; nothing where the thinking did not end."""
    _, ended, answer = text.rpartition(THINK_END)
    opening = tokenizer.prompt(messages).opening
    if THINK_START in answer or (not ended and opening and THINK_END not in opening):
        return ""
    return tokenizer.strip_end(answer)[0].strip()

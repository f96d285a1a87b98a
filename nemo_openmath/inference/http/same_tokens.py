"""Whether a server's tokenizer is ours, asked before the first request. Ids of another tokenizer are garbage, which no
server refuses.

A server that has ``/tokenize`` (vLLM, SGLang, our own) says which ids a probe text becomes. Of any other, the count is
compared: how many tokens it says the text has as a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.core.engine import EngineError, Request, Sampling
from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.http.answers import AnswerPart
from nemo_openmath.inference.http.dialects import Dialect
from nemo_openmath.inference.http.model_names import ModelNames
from nemo_openmath.inference.http.server_pool import Endpoint
from nemo_openmath.inference.http.transport import Transport

# Words, numbers, signs, white space and scripts that tokenizers cut in different ways; and the end-of-text tokens.
_TEXT = (
    "Solve \\frac{12345}{678} + \\sqrt[3]{2x^{10}} \\equiv 31415926 \\pmod{97}, i.e. don't guess.\n\n"
    "    for i in range(1000):\r\n\t\tprint(f'{i:>8}',  i**2 != 0x7fff)\n"
    "Größenordnung, l'été, математика, 数学の問題, الجبر, \u2264\u221a\u03c0\U0001f642   www.example.org/a_b?c=d&e=%20"
)


async def check_tokenizer(
    transport: Transport,
    server: Endpoint,
    dialect: Dialect,
    model: ModelNames,
    tokenizer: ChatTokenizer,
    end_ids: Sequence[int],
) -> bool:
    """Return whether the server was seen to cut the probe text into the ids of ``tokenizer``. Raises UserError where it
    makes others of it. Where it tells a count alone, or nothing, of which it warns once, nothing was seen. ``end_ids``:
    ids of the tokens that end a text."""
    text = probe_text(tokenizer)
    body = orjson.dumps({"model": model.asks_for, "prompt": text, "add_special_tokens": False})
    ids = (await transport.request_or_nothing(server, "/tokenize", body)).get("tokens")
    if tells_ids := isinstance(ids, list) and bool(ids) and all(type(i) is int for i in ids):
        assert isinstance(ids, list)
        problem = difference(tokenizer, ids)
    else:
        one_token = Request(text, Sampling(max_tokens=1, temperature=0.0))
        body = orjson.dumps(dialect.body(one_token, model.asks_for, False, end_ids))
        answer = await transport.request_or_nothing(server, dialect.path, body)
        try:
            count = dialect.read(answer, AnswerPart()).usage.get("prompt_tokens") if answer else None
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, EngineError):
            count = None
        if type(count) is not int or count <= 0:
            model.warn(
                f"{model.name}: the server does not tell how it cuts a text into tokens; make sure that "
                f"{tokenizer.folder} has its tokenizer"
            )
            return False
        problem = count_difference(tokenizer, count)
    if problem is not None:
        raise UserError(
            f"{server.url}: {model.name!r} has another tokenizer than {tokenizer.folder}: {problem}",
            remedy="give as tokenizer the folder of the model that is served",
        )
    return tells_ids


def probe_text(tokenizer: ChatTokenizer) -> str:
    """Return a text whose ids differ between any two tokenizers that are not one."""
    return _TEXT + "".join(tokenizer.ends)


def difference(tokenizer: ChatTokenizer, theirs: Sequence[int]) -> str | None:
    """Describe the first token of the probe text in which a server's ids differ from ours; None where none does."""
    ours = tokenizer.encode(probe_text(tokenizer))
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    if at == len(ours) == len(theirs):
        return None
    here, there = (f"token {ids[at]}" if at < len(ids) else "nothing" for ids in (ours, theirs))
    where = f"behind {tokenizer.decode(ours[:at])[-12:]!r}" if at else "first of a text"
    return f"{where} comes {here} here, {there} there"


def count_difference(tokenizer: ChatTokenizer, theirs: int) -> str | None:
    """Describe how a server's count of the probe text as a prompt differs from ours; None where it does not. The count
    may be with or without the tokens that are put around a text."""
    text = probe_text(tokenizer)
    counts = {len(tokenizer.encode(text)), len(tokenizer.encode_whole(text))}
    if theirs in counts:
        return None
    return f"a text of {' or '.join(map(str, sorted(counts)))} tokens here has {theirs} there"

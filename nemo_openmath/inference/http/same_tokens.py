"""Whether a server's tokenizer is ours: asked before the first request. Ids of another tokenizer are garbage, which no
server refuses.

A server that has ``/tokenize`` (vLLM, SGLang, our own) says which ids a probe text becomes. Of any other, the count is
compared: how many tokens it says the text has as a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemo_openmath.chat.tokenizer import ChatTokenizer

# Words, numbers, signs, white space and scripts that tokenizers cut in different ways; and the end-of-text tokens.
_TEXT = (
    "Solve \\frac{12345}{678} + \\sqrt[3]{2x^{10}} \\equiv 31415926 \\pmod{97}, i.e. don't guess.\n\n"
    "    for i in range(1000):\r\n\t\tprint(f'{i:>8}',  i**2 != 0x7fff)\n"
    "Größenordnung, l'été, математика, 数学の問題, الجبر, \u2264\u221a\u03c0\U0001f642   www.example.org/a_b?c=d&e=%20"
)


def probe_text(tokenizer: ChatTokenizer) -> str:
    """A text whose ids differ between any two tokenizers that are not one."""
    return _TEXT + "".join(tokenizer.ends)


def difference(tokenizer: ChatTokenizer, theirs: Sequence[int]) -> str | None:
    """The first token of the probe text in which a server's ids differ from ours, in words; None where none does."""
    ours = tokenizer.encode(probe_text(tokenizer))
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    if at == len(ours) == len(theirs):
        return None
    here, there = (f"token {ids[at]}" if at < len(ids) else "nothing" for ids in (ours, theirs))
    where = f"behind {tokenizer.decode(ours[:at])[-12:]!r}" if at else "first of a text"
    return f"{where} comes {here} here, {there} there"


def count_difference(tokenizer: ChatTokenizer, theirs: int) -> str | None:
    """The same of the count of the probe text as a prompt, with or without the tokens that are put around a text."""
    text = probe_text(tokenizer)
    counts = {len(tokenizer.encode(text)), len(tokenizer.encode_whole(text))}
    if theirs in counts:
        return None
    return f"a text of {' or '.join(map(str, sorted(counts)))} tokens here has {theirs} there"

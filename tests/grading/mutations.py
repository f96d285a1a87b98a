"""Small changes of an answer that, but for a few, mean another answer: one mark changed at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.grading.rewritings import body

TOKEN = re.compile(r"\\(?:begin|end)\{[a-z]+\}|\\[a-zA-Z]+|\\[%$]|\d+(?:\.\d+)?|[a-zA-Z]+|\s+|.", re.DOTALL)
_SWAPS = {
    "sign": {"+": ["-"], "-": ["+"], r"\pm": ["+", "-"]},
    "relation": {
        "=": [r"\ne ", "<"], "<": [r"\le ", ">"], ">": [r"\ge ", "<"], r"\le": ["<", r"\ge "], r"\leq": ["<", r"\geq "],
        r"\ge": [">", r"\le "], r"\geq": [">", r"\leq "], r"\ne": ["="], r"\neq": ["="],
    },
    "bracket": {"[": ["("], "(": ["["], "]": [")"], ")": ["]"]},
    "domain": {
        r"\cup": [r"\cap "], r"\cap": [r"\cup "], r"\infty": [r"-\infty", "10"], "R": ["Z"], "Z": ["N"], "and": ["or"],
        "or": ["and"],
    },
    "function": {
        r"\sin": [r"\cos "], r"\cos": [r"\sin "], r"\tan": [r"\cot "], r"\ln": [r"\log _{2}"], r"\log": [r"\ln "],
        r"\sqrt": [r"\sqrt[3]", ""], r"\pi": ["e", ""], "!": [""], r"\frac": [r"\binom"], r"\binom": [r"\frac"],
    },
    "unit": {
        "cm": ["m", "mm"], "m": ["cm"], "km": ["m"], "%": [""], r"\%": [""], r"\circ": [""], "kg": ["g"], "ft": ["in"],
        "s": ["h"], r"\$": ["€"], "hr": ["s"], "min": ["h"], "miles": ["km"], "feet": ["yards"], "inches": ["feet"],
    },
}  # fmt: skip


def mutations(answer: str) -> Iterator[tuple[str, str]]:
    """(what was changed, changed text), each text once."""
    text = body(answer)
    seen = {text}
    for kind, changed in _all(text):
        if changed not in seen and changed.strip():
            seen.add(changed)
            yield kind, changed


def _all(text: str) -> Iterator[tuple[str, str]]:
    tokens = TOKEN.findall(text)

    def put(i: int, new: str, until: int | None = None) -> str:
        return "".join((*tokens[:i], new, *tokens[until or i + 1 :]))

    before = ""
    for i, token in enumerate(tokens):
        if token.isspace():
            continue
        kind = "exponent" if before == "^" or "".join(tokens[max(0, i - 2) : i]) == "^{" else "number"
        if token[0].isdigit():
            yield from ((kind, put(i, new)) for new in _numbers(token))
        for name, swaps in _SWAPS.items():
            yield from ((name, put(i, new)) for new in swaps.get(token, ()))
        if len(token) == 1 and token.isalpha():
            yield "letter", put(i, "y" if token == "x" else "x")
            yield "letter", put(i, token.swapcase())
            yield "bars", put(i, f"|{token}|")
            if tokens.count(token) > 1:
                yield "letter", "".join("w" if t == token else t for t in tokens)
        if token == "|":
            closing = next((j for j in range(i + 1, len(tokens)) if tokens[j] == "|"), None)
            if closing is not None:
                yield "bars", "".join((*tokens[:i], "(", *tokens[i + 1 : closing], ")", *tokens[closing + 1 :]))
        if token == "^":
            yield "exponent", "".join(tokens[:i]) + _after_argument("".join(tokens[i + 1 :]))
            yield "exponent", put(i, "") if tokens[i + 1 : i + 2] != ["{"] else put(i, "^{-1} ")
        before = token
    yield "sign", text[1:] if text.startswith("-") else f"-{text}"
    if "," not in text and "=" not in text and any(mark in text for mark in "+-/"):
        yield "sign", f"-({text})"
    yield from _orders(text)
    if "=" not in text and "<" not in text and not re.search(r"[a-zA-Z]{3}", text.replace("frac", "")):
        yield "unit", rf"{text}\%"
        yield "relation", f"x>{text}"


def _numbers(token: str) -> Iterator[str]:
    if "." in token:
        yield token + "1"
        yield token[:-1] if token[-2] != "." else token.replace(".", "")
        yield token.replace(".", "", 1)
        return
    value = int(token)
    yield str(value + 1)
    yield token + "0"
    if value > 1:
        yield str(value - 1)
        yield f"-{token}"
    if len(token) > 1:
        yield token[:-1]
        yield token[1:]
        yield f"{token[:-1]}.{token[-1]}"
        yield f"{token[0]},{token[1:]}"
        yield from (token[:j] + token[j + 1] + token[j] + token[j + 2 :] for j in range(len(token) - 1))


def _after_argument(text: str) -> str:
    """What stands behind the exponent at the start of a text."""
    text = text.lstrip()
    if not text.startswith("{"):
        return text[len(m[0]) :] if (m := re.match(r"\\[a-zA-Z]+|.", text)) else ""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "{") - (c == "}")
        if depth == 0:
            return text[i + 1 :]
    return ""


def _orders(text: str) -> Iterator[tuple[str, str]]:
    """The items of a list or tuple in another order, one left out, one doubled."""
    m = re.fullmatch(r"(\(|\[|\\\{|\\left\(|\{|)(.*?)(\)|\]|\\\}|\\right\)|\}|)", text, re.DOTALL)
    if m is None or "," not in m[2]:
        return
    items, depth, start = [], 0, 0
    for i, c in enumerate(m[2] + ","):
        depth += (c in "({[") - (c in ")}]")
        if c == "," and depth == 0:
            items.append(m[2][start:i].strip())
            start = i + 1
    if depth or len(items) < 2 or not all(items):
        return
    yield "order", m[1] + ", ".join([items[1], items[0], *items[2:]]) + m[3]
    yield "order", m[1] + ", ".join(items[::-1]) + m[3]
    yield "members", m[1] + ", ".join(items[1:]) + m[3]
    yield "members", m[1] + ", ".join([*items, items[0]]) + m[3]
    yield "members", m[1] + ", ".join([*items, "17"]) + m[3]

"""Generators of other spellings of an answer, and of answers that look like it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

NUMBER = re.compile(r"(?<![\d.,])\d+(?![\d.,]*\d)")
FRACTION = re.compile(r"\\frac\{(\d+)\}\{(\d+)\}|(\d+)\s*/\s*(\d+)")
_WORDS = re.compile(r"[A-Za-z]{3}|^[A-Z]\b|^\+?\\infty$|\\text|\\begin|ldots")
_RELATED = re.compile(
    r"[=<>:;$]|\\(?:[lg]eq?(?:slant)?|neq?|approx|equiv|in|mid|cup|pm|mp|circ|%)(?![a-z])|\\[%{]|[\d)]\s*[%°]"
)
_NO_FACTOR = re.compile(  # units and intervals
    r"(?<=[\d)}])\s*\\?(?:[a-z]{2}\b|(?:math|text)[a-z]*\{)|'|\\prime|^[\[(].*[)\]]$"
)
_EQUATION = re.compile(r"([^=<>,;:|$]+?)(=|<|>|\\leqslant|\\geqslant|\\leq?|\\geq?)(?![a-z])([^=<>,;:|$]+)")


def body(answer: str) -> str:
    text = answer.strip().rstrip(".")
    if text.count("$") % 2 or (text.startswith("$") and text.endswith("$")):
        text = text.strip("$")
    return text.strip().rstrip(".")


def exact_value(text: str) -> Fraction | None:
    """The value of a plain number or fraction, None of everything else."""
    if re.fullmatch(r"-?\d+(\.\d+)?", text):
        return Fraction(text)
    if (m := re.fullmatch(r"(-?)(?:\\frac\{(\d+)\}\{(\d+)\}|(\d+)\s*/\s*(\d+))", text)) is not None:
        value = Fraction(int(m[2] or m[4]), int(m[3] or m[5]))
        return -value if m[1] else value
    return None


def split_sum(text: str) -> list[str] | None:
    """Signed terms of a sum at the top level, None where there is one term or a relation or list."""
    depth, terms, start = 0, [], 0
    for i, c in enumerate(text):
        depth += (c in "({[") - (c in ")}]")
        if depth == 0 and c in ",;|=<>\\" and (c != "\\" or text.startswith((r"\equiv", r"\pm", r"\text", r"\in"), i)):
            return None
        if depth == 0 and c in "+-" and i > 0 and text[:i].strip():
            terms.append(text[start:i].strip())
            start = i
    terms.append(text[start:].strip())
    return terms if len(terms) > 1 else None


def rewritings(answer: str) -> Iterator[str]:
    """At least ten texts that mean the same answer."""
    text = body(answer)
    yield from (text, f"{text}.", rf"\boxed{{{text}}}", rf"\displaystyle {text}", rf"\quad {text} \,", f"  {text}  ")
    yield rf"\,{text}\;"
    if "$" not in text:
        yield from (f"${text}$", f"$${text}$$", rf"\({text}\)", rf"\[{text}\]", rf"$\!{text}$.")
    for command in ("dfrac", "tfrac"):
        if r"\frac" in text:
            yield text.replace(r"\frac", rf"\{command}")
    if r"\pi" in text:
        yield text.replace(r"\pi", "π")
    if r"\sqrt{" in text:
        yield text.replace(r"\sqrt{", r"\sqrt {")
    if _WORDS.search(re.sub(r"\\[a-z]+", "", text)) or "ldots" in text or r"\begin" in text:
        return
    yield text.replace("(", r"\left(").replace(")", r"\right)")
    yield text.replace("+", " + ").replace("-", " - ")
    yield from turned(text)
    if _RELATED.search(text) or ("," not in text and _NO_FACTOR.search(text)):
        return
    if "," in text:
        if "(" not in text and len(set(items := [i.strip() for i in text.split(",")])) == len(items):
            yield ", ".join(reversed(items))
        yield re.sub(r",\s*", ", ", text)
        return
    yield from (
        rf"x = {text}",
        rf"\left({text}\right)",
        rf"1 \cdot ({text})",
        rf"\frac{{2({text})}}{{2}}",
        rf"-(-({text}))",
    )
    yield rf"({text})+7-7"
    if (terms := split_sum(text)) is not None:
        head = terms[0] if terms[0].startswith("-") else "+" + terms[0]
        yield (" ".join(terms[1:]) + head).lstrip("+ ")
    value = exact_value(text)
    if value is None:
        return
    sign, size = ("-", -value) if value < 0 else ("", value)
    n, d = size.numerator, size.denominator
    yield from (
        rf"{sign}\frac{{{3 * n}}}{{{3 * d}}}",
        f"{sign}{n}/{d}",
        f"{sign}0{n}/{d}",
        rf"{sign}{n} \cdot {d}^{{-1}}",
    )
    if d == 1:
        yield from (f"{sign}{n:,}", f"{sign}{n:,}".replace(",", "{,}"), f"{sign}{n}.0", f"{sign}{n}.00", f"{sign}00{n}")
        yield from (rf"\text{{{text}}}", rf"\mathbf{{{text}}}", f"{value - 5}+5", rf"{sign}{n * 100}\%")
    elif all(p in (2, 5) for p in prime_factors(d)):
        yield f"{sign}{float(size)!r}"
        yield f"{sign}{float(size)!r}0"
    if n > d > 1:
        yield rf"{sign}{n // d}\frac{{{n % d}}}{{{d}}}"


def turned(text: str) -> Iterator[str]:
    """An equation or inequality with its sides exchanged, and doubled."""
    m = _EQUATION.fullmatch(text)
    if m is None or _RELATED.search(m[1] + m[3]) or r"\mathrm" in text:
        return
    flipped = {"=": "=", "<": ">", ">": "<"}.get(m[2]) or (r"\ge " if m[2].startswith(r"\le") else r"\le ")
    yield f"{m[3]}{flipped}{m[1]}"
    letters = [re.search("[a-zA-Z]", re.sub(r"\\[a-z]+|[{ ]e[ }]", "", side)) for side in (m[1], m[3])]
    if letters[1] is None and (letters[0] is None or re.fullmatch(r"\s*\w\s*", m[1])):
        return  # a value
    if not re.match(r"\s*\w+\(", m[1]):
        yield f"2({m[1]}){m[2]} 2({m[3]})"
        yield f"{m[1]}-({m[3]}){m[2]} 0"


def prime_factors(n: int) -> Iterator[int]:
    p = 2
    while n > 1:
        while n % p == 0:
            yield p
            n //= p
        p += 1


def near_misses(answer: str) -> Iterator[str]:
    """Texts that look like the answer and mean another one."""
    text = body(answer)
    for m in NUMBER.finditer(text):
        digits, before, after = m[0], text[: m.start()], text[m.end() :]
        changes = {str(int(digits) + 1), digits + "0"}
        if int(digits) > 1:
            changes.add(str(int(digits) - 1))
        if len(digits) > 1:
            changes.add(digits[:-1])
            changes |= {digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :] for i in range(len(digits) - 1)}
        for change in sorted(changes - {digits}):
            if int(change) != int(digits):
                yield before + change + after
    if r"\sqrt" in text:
        yield text.replace(r"\sqrt", "", 1)
    if r"\pi" in text:
        yield text.replace(r"\pi", "", 1).strip() or "1"
    value = exact_value(text)
    if value:
        yield from (
            f"-({text})",
            rf"\frac{{1}}{{{text}}}" if abs(value) != 1 else "2",
            f"{text} + 10^{{-40}}",
            rf"{text}\sqrt{{2}}",
        )
        yield rf"{text}\pi"
        if value.denominator == 1:
            yield from (
                f"{text}.5",
                f"{text}.000001",
                f"{text}\\%" if abs(value) <= 1 else f"0.{abs(value)}",
                f"{text}, {text}1",
            )
    elif value is None and "," not in text and "=" not in text and r"\begin" not in text and "if" not in text:
        yield f"-({text})"

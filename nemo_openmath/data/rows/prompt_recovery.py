"""Find the prompt that rows were asked with: what their questions have in common, around the places that differ.

    rows' questions     You get 3 answers ... Problem: What is 6 times 7? ... Solution 0: ... Solution 2: ... Choose.
                        You get 5 answers ... Problem: Find all primes ... ... Solution 0: ... Solution 4: ... Choose.
    template            You get {num_solutions} answers ... Problem: {problem} ... {solutions} Choose.

1. In a question of GenSelect the solutions are digits by their numbers: lines that begin alike and count 0, 1, 2, ...
   They also say how many there are, so that the numbers of the prompt that depend on it are known.
2. What all questions begin with and what they end with is the prompt; what differs in front of the solutions is the
   problem. Where words or a full stop are common at the edge of a place by chance, they are left to the place.
3. The template is verified: a row counts where the template, filled in, is its question byte for byte, and where its
   problem is the one that the row says, if it says one.
4. What the rows do not tell is refused (prompt_doubts.py): words that may be of all problems, and a template that hides
   in its problems what several prompts differ in. Where these are lines, the rows are divided instead.

A few odd rows and several prompts in one file do no harm: a template is learnt from a few rows at a time, and the one
that reproduces most rows is learnt again from all of these; then the rows that are left are looked at.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from nemo_openmath.chat.prompts import FIELDS, Template, parse_template
from nemo_openmath.core.errors import UserError
from nemo_openmath.data.rows.prompt_doubts import division, unclear_words

SAMPLE = 400
"""Rows that a template is learnt from, at most."""
_FEW = 4  # rows that a template is tried to be learnt from
_ATTEMPTS = 40
_EDGE = 24  # characters at both ends by which rows of one prompt are looked for
_CHUNK = 64  # characters that are compared at once
_LONGEST = 20_000  # characters of a prompt that are looked at, from each of its places
_LEAST = 8  # characters of a prompt, at least
_NUMBER = re.compile(r"\d+")
_AT_END = r"[\w.,;?!$})\]]*"  # what a problem or a solution may end with


class NoPrompt(Exception):
    """The rows have no prompt in common; the message says why."""


@dataclass(frozen=True)
class RowQuestion:
    """The question of a row: its system turn and its user turn. ``budget``: the executions of code that it states.
    ``problem``: the problem, where the row says it beside the question."""

    user: str
    system: str | None = None
    budget: int | None = None
    problem: str | None = None

    @cached_property
    def headings(self) -> dict[tuple[str, str], list[re.Match[str]]]:
        """The chains of numbers 0, 1, 2, ... that lines of the text count, by what stands before and behind them."""
        chains: dict[tuple[str, str], list[re.Match[str]]] = {}
        for line in _LINE_WITH_NUMBER.finditer(self.user):
            key = (line["before"], self.user[line.end("number") : line.end("number") + 1])
            chain = chains.setdefault(key, [])
            if int(line["number"][:9]) == len(chain) and line["number"] == str(len(chain)):
                chain.append(line)
        return {key: chain for key, chain in chains.items() if len(chain) > 1}


_LINE_WITH_NUMBER = re.compile(r"^(?P<before>[^\d\n]{0,60})(?P<number>\d{1,9})(?!\d)", re.M)


@dataclass(frozen=True)
class RecoveredPrompt:
    """A template, and how many of the rows that were looked at it reproduces."""

    template: Template
    rows: int


@dataclass(slots=True)
class Recovery:
    """What was recovered of a sample of rows, the prompt of most rows first. ``reasons``: why no more was.
    ``doubts``: what is not known of rows that have something in common -> the rows."""

    prompts: list[RecoveredPrompt] = field(default_factory=list)
    rows: int = 0
    """Rows that were looked at."""
    reasons: Counter[str] = field(default_factory=Counter)
    doubts: Counter[str] = field(default_factory=Counter)


def recover(questions: Sequence[RowQuestion], name: str, seed: int = 0) -> Recovery:
    """Return the prompts ``name`` (cot, tir or genselect) that rows were asked with."""
    recovery = Recovery(rows=len(questions))
    for system in sorted({q.system for q in questions}, key=str):
        rows = [q for q in questions if q.system == system]
        rng = random.Random(seed)
        while (best := _best_of_several(rows, name, rng, recovery.reasons)) is not None:
            if len(best[1]) < max(2, len(questions) // 100):
                break
            template, reproduced = best
            recovery.prompts += _without_doubt(template, reproduced, name, recovery.doubts)
            looked_at = set(map(id, reproduced))
            rows = [q for q in rows if id(q) not in looked_at]
    recovery.prompts.sort(key=lambda prompt: -prompt.rows)
    return recovery


def _without_doubt(
    template: Template, rows: list[RowQuestion], name: str, doubts: Counter[str]
) -> list[RecoveredPrompt]:
    """Return the prompts of rows that one template reproduces: it, or those of its parts where it hides several.

    Rows of which it is not known are counted in ``doubts``, by what is not.
    """
    values = [values_of(template, q) or {} for q in rows]
    problems, known = [str(v["problem"]) for v in values], sum(q.problem is not None for q in rows)
    split = [
        _split_listing(template, str(v["solutions"]), int(str(v["num_solutions"]))) for v in values if "solutions" in v
    ]
    parts = division(template, problems if known < len(rows) else (), [listing for listing in split if listing])
    is_clear = parts is not None and parts.is_clear
    if not is_clear and known < 2 and (words := unclear_words(template, problems)):
        doubts[f"{words[:80]!r} stands beside every problem: of the prompt, or of all problems"] += len(rows)
        return []
    if parts is None:
        return [RecoveredPrompt(template, len(rows))]
    if not parts.is_clear:
        doubts[f"{parts}: of several prompts, or of these problems"] += len(rows)
        return []
    prompts: list[RecoveredPrompt] = []
    for text, numbers in parts.parts.items():
        own = [rows[number] for number in numbers]
        try:
            narrower = learn(own, name)
        except NoPrompt as error:
            doubts[f"problems {parts.side} with {text.strip()[:60]!r}: {error}"] += len(own)
            continue
        reproduced = [q for q in own if reproduces(narrower, q)]
        if narrower.digest == template.digest or len(reproduced) < 2:
            doubts[f"problems {parts.side} with {text.strip()[:60]!r}: no prompt of their own"] += len(own)
            continue
        prompts += _without_doubt(narrower, reproduced, name, doubts)
    return prompts


def reproduces(template: Template, question: RowQuestion) -> bool:
    """Return whether the template, filled in, is the question, byte for byte."""
    return values_of(template, question) is not None


def values_of(template: Template, question: RowQuestion) -> Mapping[str, object] | None:
    """Return the values with which the template is the question; None where there are none."""
    if template.system != question.system:
        return None
    match = template.match(question.user)
    if match is None:
        return None
    values: dict[str, object] = dict(match)
    if "solutions" in match:
        num = match.get("num_solutions")
        solutions = _split_listing(template, match["solutions"], None if num is None else int(num[:9]))
        if solutions is None:
            return None
        values |= {"solutions": template.listing(solutions), "num_solutions": len(solutions)}
        values["max_idx"] = len(solutions) - 1
    if "total_code_executions" in match and question.budget not in (None, int(match["total_code_executions"][:9])):
        return None
    if question.problem is not None and str(values["problem"]).strip() != question.problem.strip():
        return None
    values = {name: values.get(name, "") for name in template.fields}
    rendered = template.messages(**values)
    return values if rendered[-1].content == question.user else None


def _best_of_several(
    rows: list[RowQuestion], name: str, rng: random.Random, reasons: Counter[str]
) -> tuple[Template, list[RowQuestion]] | None:
    """Return the template that reproduces the most rows, and these, of several that are learnt from a few rows each."""
    best: tuple[Template, list[RowQuestion]] | None = None
    for _ in range(_ATTEMPTS if len(rows) > 1 else 0):
        try:
            template = learn(_few_alike(rows, rng), name)
        except NoPrompt as error:
            reasons[str(error)] += 1
            continue
        reproduced = [q for q in rows if reproduces(template, q)]
        if best is None or len(reproduced) > len(best[1]):
            best = template, reproduced
        if len(best[1]) > 0.9 * len(rows):
            break
    while best is not None and len(best[1]) > 1:  # what few rows have in common by chance, all have not
        try:
            template = learn([q for q in best[1] if _is_plain(best[0], q)], name)
        except NoPrompt:
            break
        reproduced = [q for q in rows if reproduces(template, q)]
        if template.digest == best[0].digest or len(reproduced) < len(best[1]):
            break
        best = template, reproduced
    return best


def _is_plain(template: Template, question: RowQuestion) -> bool:
    """Return whether the solutions of a question can be digits by their numbers: neither problem nor solutions count in
    the same way."""
    values = values_of(template, question)
    if values is None or "solutions" not in values:
        return values is not None
    begin = question.user.find(str(values["solutions"]))
    end = begin + len(template.item)
    chains = (chain for chain in question.headings.values() if begin <= chain[0].start() <= end)
    return any(len(chain) == values["num_solutions"] for chain in chains)


def _few_alike(rows: list[RowQuestion], rng: random.Random) -> list[RowQuestion]:
    """Return a few rows that begin or end as one of them does, with different numbers of solutions where they have."""
    first = rng.choice(rows)
    ends, count = _ends(first), any if first.problem is None else all
    alike = [q for q in rows if q is not first and count(a == b for a, b in zip(_ends(q), ends, strict=True))]
    others = alike if len(alike) >= min(_FEW, len(rows)) - 1 else [q for q in rows if q is not first]
    return [first, *rng.sample(others, min(_FEW - 1, len(others)))]


def _ends(question: RowQuestion) -> tuple[str, str]:
    """What a question begins and ends with: where the row says its problem, what stands around that."""
    before, after = _split_at_problem(question.user, question.problem) or (question.user, question.user)
    if question.problem is not None and before is not question.user:
        return _NUMBER.sub("0", before), _NUMBER.sub("0", after[:1] + after[-_EDGE:])
    return _NUMBER.sub("0", before[:_EDGE]), _NUMBER.sub("0", after[-_EDGE:])


def _split_at_problem(text: str, problem: str | None) -> tuple[str, str] | None:
    """Return what stands in front of a problem and behind it; None where it is not in the text, or several times."""
    if problem is None or text.count(problem) != 1:
        return None
    before, _, after = text.partition(problem)
    return before, after


# -- learning ----------------------------------------------------------------------------------------------------------


def learn(rows: Sequence[RowQuestion], name: str) -> Template:
    """Return what the questions of all rows have in common as a template ``name``. Raises NoPrompt."""
    template = _learn_selection(rows) if name == "genselect" else _learn_solution(rows, name)
    literal = _PLACE.sub("", template.user)
    if sum(not char.isspace() for char in literal) < _LEAST:
        raise NoPrompt("the questions have nothing in common but their problems")
    try:
        again = parse_template(name, template.to_text(), f"{name}.txt")
    except UserError as error:
        raise NoPrompt(str(error)) from error
    if again != template or "\r" in template.to_text():
        raise NoPrompt("the prompt holds lines that a template file takes for its own")
    return template


_PLACE = re.compile(r"\{(?:" + "|".join({field for fields in FIELDS.values() for field in fields}) + r")\}")


def _learn_solution(rows: Sequence[RowQuestion], name: str) -> Template:
    numbers = {}
    if name == "tir":
        if any(q.budget is None for q in rows):
            raise NoPrompt("rows do not say how many executions of code they were allowed")
        numbers["total_code_executions"] = [q.budget or 0 for q in rows]
    before, after = _around_the_problem([q.user for q in rows], numbers, [q.problem for q in rows])
    return Template(name, f"{before}{{problem}}{after}", rows[0].system, FIELDS[name])


def _learn_selection(rows: Sequence[RowQuestion]) -> Template:
    error = NoPrompt("the solutions of the questions are not numbered 0, 1, 2, ... at the beginning of lines")
    for key in _headings_of(rows)[:3]:
        try:
            return _learn_listing(rows, key)
        except NoPrompt as reason:
            error = reason
    raise error


def _learn_listing(rows: Sequence[RowQuestion], key: tuple[str, str]) -> Template:
    """Return the template where the solutions begin with numbers between what ``key`` says."""
    chains = [q.headings[key] for q in rows]
    numbers = {"num_solutions": [len(c) for c in chains], "max_idx": [len(c) - 1 for c in chains]}
    texts = [q.user for q in rows]

    # Around each number of a solution.
    in_front = [text[: m.start("number")] for text, chain in zip(texts, chains, strict=True) for m in chain[1:]]
    behind = [text[m.end("number") :] for text, chain in zip(texts, chains, strict=True) for m in chain]
    suffix = _trimmed_behind(_common_prefix(behind, {}))
    gap = re.sub(rf"\A{_AT_END}", "", _common_suffix(in_front, {}))
    heads = [text[: chain[0].start("number")] for text, chain in zip(texts, chains, strict=True)]
    before, after = _around_the_problem(heads, numbers, [q.problem for q in rows])
    prefix = _item_prefix(gap, after, key[0])
    gap, after = gap.removesuffix(prefix), after.removesuffix(prefix)

    # Behind the last solution.
    tails = [text[chain[-1].end("number") + len(suffix) :] for text, chain in zip(texts, chains, strict=True)]
    tail = re.sub(rf"\A{_AT_END}", "", _common_suffix(tails, numbers))
    end = _item_end(gap, tail)
    item = f"{prefix}{{index}}{suffix}{{solution}}{end}"
    between, tail = gap.removeprefix(end), tail.removeprefix(end)
    user = f"{before}{{problem}}{after}{{solutions}}{tail}"
    return Template("genselect", user, rows[0].system, FIELDS["genselect"], item, between)


def _headings_of(rows: Sequence[RowQuestion]) -> list[tuple[str, str]]:
    """Return what may stand before and behind the numbers of solutions: of the lines that count, those of all rows.

    Lines inside of solutions may count, too. Those of the prompt agree with the numbers that it states, and their
    number differs.
    """
    counts = Counter(key for question in rows for key in question.headings)
    keys = [key for key, count in counts.items() if count == len(rows)]

    def rank(key: tuple[str, str]) -> tuple[int, int, tuple[str, str]]:
        lengths = [len(q.headings[key]) for q in rows]
        return sum(map(_states, rows, lengths)), len(set(lengths)), key

    return sorted(keys, key=rank, reverse=True)


def _states(question: RowQuestion, count: int) -> bool:
    words = set(_NUMBER.findall(question.user[:2000]) + _NUMBER.findall(question.user[-2000:]))
    return bool({str(count), str(count - 1)} & words)


def _around_the_problem(
    texts: Sequence[str], numbers: Mapping[str, Sequence[int]], problems: Sequence[str | None]
) -> tuple[str, str]:
    """Return what stands before and behind the one place at which all texts differ, or where all of them have their
    ``problems``. Raises NoPrompt."""
    sides = (_split_at_problem(text, problem) for text, problem in zip(texts, problems, strict=True))
    located = [side for side in sides if side is not None]
    if len(located) == len(texts):
        before = _common_prefix([side[0] for side in located], numbers)
        after = _common_suffix([side[1] for side in located], numbers)
        for row, side in enumerate(located):
            if (_fill(before, numbers, row), _fill(after, numbers, row)) != side:
                raise NoPrompt("the questions differ in more than the problems that their rows say")
        return before, after
    begin = _common_prefix(texts, numbers) if len(set(texts)) > 1 else ""
    if len(set(texts)) < 2 or all(_fill(begin, numbers, row) == text for row, text in enumerate(texts)):
        raise NoPrompt("all rows are of one problem")
    before = re.sub(r"[\w$\\(]+\Z", "", begin)
    room = [len(text) - _length(before, numbers, row) for row, text in enumerate(texts)]
    rests = [text[len(text) - size :] for text, size in zip(texts, room, strict=True)]
    after = _common_suffix(rests, numbers)
    after = re.sub(rf"\A{_AT_END}", "", after)
    if any(size <= _length(after, numbers, row) for row, size in enumerate(room)):
        raise NoPrompt("no problem stands in front of the solutions, or in one place alone")
    places = [rest[: len(rest) - _length(after, numbers, row)] for row, rest in enumerate(rests)]
    lines = set.intersection(*({line for line in place.split("\n") if len(line) > 20} for place in places))
    if lines:
        raise NoPrompt(f"the questions differ in more places than one, around {sorted(lines)[0][:60]!r}")
    return before, after


def _length(literal: str, numbers: Mapping[str, Sequence[int]], row: int) -> int:
    """The characters that a literal with places of numbers takes in a row."""
    return len(_fill(literal, numbers, row))


def _fill(literal: str, numbers: Mapping[str, Sequence[int]], row: int) -> str:
    for name, values in numbers.items():
        literal = literal.replace(f"{{{name}}}", str(values[row]))
    return literal


def _trimmed_behind(text: str) -> str:
    """What follows the number of a solution, without words with which all solutions happen to begin: whole lines, or
    up to the first word."""
    if "\n" in text:
        return text[: text.rindex("\n") + 1]
    return re.sub(r"[\w$\\(]+\Z", "", text)


def _item_prefix(gap: str, after: str, before_number: str) -> str:
    """What stands in front of the number of every solution, the first as well: from the beginning of a line."""
    common = _common_suffix([gap, after], {})
    line = common.find("\n")
    prefix = common[line:].lstrip("\n") if line >= 0 else common
    return prefix if prefix.endswith(before_number) else before_number


def _item_end(gap: str, tail: str) -> str:
    """What ends every solution, the last as well: whole lines that stand in front of the next and behind the last."""
    common = _common_prefix([gap, tail], {})
    if not common.strip():
        return ""
    rest = {gap[len(common) : len(common) + 1], tail[len(common) : len(common) + 1]}
    if not rest <= {"\n", ""} and not common.endswith("\n"):
        common = common[: common.rfind("\n")] if "\n" in common else ""
    return common.rstrip("\n")


def _common_prefix(texts: Sequence[str], numbers: Mapping[str, Sequence[int]]) -> str:
    return "".join(_common(texts, numbers, forward=True))


def _common_suffix(texts: Sequence[str], numbers: Mapping[str, Sequence[int]]) -> str:
    return "".join(reversed(list(_common(texts, numbers, forward=False))))


def _common(texts: Sequence[str], numbers: Mapping[str, Sequence[int]], *, forward: bool) -> Iterable[str]:
    """Yield the parts that all texts have from one end on: characters, whole numbers, and places of numbers that
    differ from row to row as ``numbers`` (name -> value of each row) do. Raises NoPrompt where a number may be either.
    """
    at = [0 if forward else len(text) for text in texts]
    number = re.compile(r"\d+" if forward else r"\d+\Z")
    most = _LONGEST
    while most > 0:
        while (chunk := _common_chunk(texts, at, forward=forward)) and most > 0:  # many characters at once
            yield from chunk if forward else reversed(chunk)
            at = [place + len(chunk) if forward else place - len(chunk) for place in at]
            most -= len(chunk)
        most -= 1
        parts: list[str] = []
        for text, place in zip(texts, at, strict=True):
            if not (place < len(text) if forward else place > 0):
                return
            char = text[place] if forward else text[place - 1]
            if char.isdecimal() and char.isascii():
                digits = number.match(text, place) if forward else number.search(text, max(0, place - 30), place)
                char = digits.group() if digits else char
            parts.append(char)
        if len(set(parts)) == 1:
            for name, values in numbers.items():
                if set(values) == {int(parts[0][:9])} if parts[0].isdecimal() else False:
                    raise NoPrompt(
                        f"{name} is {parts[0]} in all rows, so which numbers of the prompt depend on it is not known: "
                        "give rows with other numbers, too"
                    )
            yield parts[0]
        else:
            names = [n for n, values in numbers.items() if parts == [str(value) for value in values]]
            if not names:
                return
            yield f"{{{names[0]}}}"
        at = [place + len(part) if forward else place - len(part) for place, part in zip(at, parts, strict=True)]


def _common_chunk(texts: Sequence[str], at: Sequence[int], *, forward: bool) -> str:
    """Return the next characters of all texts where they are the same and there is no number near; else nothing."""
    spans = [(place, place + _CHUNK) if forward else (place - _CHUNK, place) for place in at]
    if any(start < 0 or end > len(text) for text, (start, end) in zip(texts, spans, strict=True)):
        return ""
    chunk = texts[0][spans[0][0] : spans[0][1]]
    if _NUMBER.search(chunk):
        return ""
    same = all(text[start:end] == chunk for text, (start, end) in zip(texts, spans, strict=True))
    return chunk if same else ""


def _split_listing(template: Template, listing: str, count: int | None) -> list[str] | None:
    """Return the solutions of a listing as the template writes it; None where it does not write it so. ``count``: how
    many there are, where the question says it."""
    head, _, tail = template.item.partition("{solution}")
    if "{solution}" in tail or not listing.endswith(tail):
        return None
    starts = [0]
    first = head.replace("{index}", "0")
    if not listing.startswith(first):
        return None
    ends: list[int] = []
    while count is None or len(starts) < count:
        opening = tail + template.between + head.replace("{index}", str(len(starts)))
        place = listing.find(opening, starts[-1] + 1)
        if place < 0:
            break
        ends.append(place)
        starts.append(place + len(tail) + len(template.between))
    if count is not None and len(starts) != count:
        return None
    ends.append(len(listing) - len(tail))
    heads = [len(head.replace("{index}", str(number))) for number in range(len(starts))]
    spans = [(start + size, end) for start, size, end in zip(starts, heads, ends, strict=True)]
    return [listing[start:end] for start, end in spans] if all(start <= end for start, end in spans) else None

"""How a problem is posed on a forum (asked, to be proven, with choices, yes or no, broken), and the reading of it."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from enum import StrEnum

from nemo_openmath.demo import world
from nemo_openmath.demo.kinds import KINDS
from nemo_openmath.demo.world import Item


class Form(StrEnum):
    """The kinds of problems that classification tells apart."""

    ANSWER = "answer"
    PROOF = "proof"
    CHOICE = "multiple-choice"
    BINARY = "binary"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Posed:
    """A problem as it stands in a post."""

    form: Form
    text: str
    item: Item | None = None
    """The problem of the world behind it; None where there is none."""
    claim: str | None = None
    """The value that a proof problem or a yes-no question names."""
    start: int = 0
    """Where it begins in the post, in characters."""


_CLAIMS = {
    Form.PROOF: ("Prove that {quantity} is {claim}.", "Show that {quantity} equals {claim}."),
    Form.BINARY: ("Is it true that {quantity} is {claim}?", "True or false: {quantity} equals {claim}."),
    Form.CHOICE: ("Which of these is {quantity}: {claim}?",),
}
_BEYOND = (  # proofs that ask for no value: nobody can convert them
    "Prove that there are infinitely many primes that leave remainder {n} when divided by {m}.",
    "Show that no power of {n} is the sum of {m} consecutive squares.",
    "Prove that every integer above {m} is a sum of terms each of which is {n} or a prime.",
)
_NONSENSE = (
    "Find the remainder in the picture I attached.",
    "How many solutions does it have? See the other thread for the equation.",
    "What is the smallest such number if x is as before?",
)


def ask(item: Item) -> Posed:
    """Pose the problem as it is."""
    return Posed(Form.ANSWER, item.statement, item)


def as_proof(item: Item, rng: random.Random) -> Posed:
    """Give the answer away and ask for a proof; this can be turned back."""
    return _claim(Form.PROOF, item, item.answer, rng)


def as_choice(item: Item, rng: random.Random) -> Posed:
    """Ask with four choices, the answer among them."""
    values = {int(item.answer)}
    while len(values) < 4:
        values.add(max(0, int(item.answer) + rng.randint(-9, 9)))
    mixed = rng.sample(sorted(values), 4)
    claim = " ".join(f"({letter}) {value}" for letter, value in zip("ABCD", mixed, strict=True))
    return _claim(Form.CHOICE, item, claim, rng)


def as_question(item: Item, rng: random.Random) -> Posed:
    """Ask a yes-no question about the answer; it is true half of the time."""
    shift = rng.choice((0, 0, 1, 2))
    return _claim(Form.BINARY, item, str(int(item.answer) + shift), rng)


def beyond(rng: random.Random) -> Posed:
    """Return a proof problem that has no form with an answer."""
    return Posed(Form.PROOF, rng.choice(_BEYOND).format(n=rng.randint(3, 20), m=rng.randint(21, 99)))


def broken(item: Item, rng: random.Random) -> Posed:
    """Return a truncated statement, or one that lacks what it speaks of."""
    if rng.random() < 0.4:
        return Posed(Form.INVALID, rng.choice(_NONSENSE))
    words = item.statement.split(" ")
    return Posed(Form.INVALID, " ".join(words[: rng.randint(max(2, len(words) // 3), len(words) * 2 // 3)]))


def read(text: str) -> list[Posed]:
    """Return every problem that a post poses, in order, each with its text word for word."""
    problems = [Posed(Form.ANSWER, item.statement, item, start=start) for start, _, item in world.find(text)]
    for match in _CLAIM.finditer(text):
        group = next(name for name in _WORDINGS if match[name] is not None)
        kind, form = _WORDINGS[group]
        params = tuple(int(match[f"{group}_{name}"]) for name in KINDS[kind].names)
        item = world.make_item(kind, params)
        problems.append(Posed(form, match.group(0), item, match[f"{group}_claim"], match.start()))
    spans = [(p.start, p.start + len(p.text)) for p in problems]
    for match in _LOOSE.finditer(text):
        if not any(start <= match.start() < end for start, end in spans):
            form = Form.PROOF if match.group(0).startswith(("Prove", "Show")) else Form.INVALID
            problems.append(Posed(form, match.group(0).rstrip(), start=match.start()))
    return sorted(problems, key=lambda posed: posed.start)


def _claim(form: Form, item: Item, claim: str, rng: random.Random) -> Posed:
    text = rng.choice(_CLAIMS[form]).replace("{quantity}", item.quantity).replace("{claim}", claim)
    return Posed(form, text, item, claim)


def _claim_pattern() -> tuple[re.Pattern[str], dict[str, tuple[str, Form]]]:
    parts: list[str] = []
    wordings: dict[str, tuple[str, Form]] = {}
    for form, templates in _CLAIMS.items():
        value = r"(?:\([A-D]\) \d+ ?)+" if form is Form.CHOICE else r"\d+"
        for template in templates:
            for kind in KINDS.values():
                group = f"c{len(wordings)}"
                quantity = world.pattern(kind.quantity, kind, f"{group}_")
                body = re.escape(template).replace(r"\{quantity\}", quantity)
                parts.append(f"(?P<{group}>{body.replace(re.escape('{claim}'), f'(?P<{group}_claim>{value})')})")
                wordings[group] = (kind.name, form)
    return re.compile("|".join(parts)), wordings


_CLAIM, _WORDINGS = _claim_pattern()
# A line's rest that reads like a task but is none of the above.
_LOOSE = re.compile(
    r"(?:(?<=^)|(?<=\n)|(?<=[.!:,)] ))"
    r"(?:Prove|Show|Find|What|How many|Count|Let|Which|Is it|True or false|The (?:number|positive)|A positive)\b[^\n]*"
)

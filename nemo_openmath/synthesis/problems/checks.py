"""What a problem and an answer must be, whoever wrote them: small checks of what a model made of a thread.

A check is a pure function of what the model wrote and what it was shown. It has a name, and a reason in words that is
counted where it fails. A reply that fails one is asked for again; see prompted.py. Checks know mathematics and words,
and no model: what they let through may still be wrong, what they reject is.

Texts of a forum are compared by their *contents*: numbers, letters, signs and words, without the form in which formulas
are written (statement.py) and without brackets, so that ``3*sqrt(S)<=p`` is ``$3\\sqrt{S} \\le p$``.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Generic, TypeVar

from nemo_openmath.grading import compare, is_mathematics
from nemo_openmath.grading.texts import closed_class, unwrap
from nemo_openmath.inference.asking import Rejected
from nemo_openmath.synthesis.problems.examples import repeats_example
from nemo_openmath.synthesis.problems.statement import Statement, Token, misspelt, signs

S = TypeVar("S")

MOST_LETTERS = 300
"""Longest answer, in characters."""
MOST_WORDS = 12
"""Longest answer in words."""
MOST_COMPARED = 60
"""Formulas of a discussion that an answer is compared with, the last ones."""
EXAMPLE = "the reply repeats an example of the prompt"
"""The reason that counts it."""


_BOLD = re.compile(
    r"^[ \t]*[*_`]{1,3}((?:Problem(?: \d{1,4})?|Answer)(?=[*_`]{0,3}:))[*_`]{0,3}:[*_`]{0,3}[ \t]*", re.M
)


def plain_labels(reply: str) -> str:
    """Return a reply with the labels of its lines as they were asked for: "**Answer:** 5" is "Answer: 5"."""
    return _BOLD.sub(r"\1: ", reply)


@dataclass(frozen=True, slots=True)
class ReplyCheck(Generic[S]):
    """One thing that must hold."""

    name: str
    reason: str
    """What is counted where it does not hold, in words."""
    holds: Callable[[S], bool]


def first_failed(checks: Sequence[ReplyCheck[S]], subject: S) -> Rejected | None:
    """Return the rejection of the first check that does not hold; None where all do."""
    return next((Rejected(check.reason) for check in checks if not check.holds(subject)), None)


# -- what is checked ---------------------------------------------------------------------------------------------------


class ShownText:
    """A text that a model was shown, by its contents."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def contents(self) -> list[Token]:
        return contents(self.text)

    @cached_property
    def tokens(self) -> frozenset[str]:
        return frozenset(text for text, _ in self.contents)

    @cached_property
    def pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset(pairwise(text for text, _ in self.contents))

    @cached_property
    def numbers(self) -> frozenset[str]:
        """The numbers of the text: those of its contents, and long ones whose digits are grouped, in one."""
        ungrouped = re.sub(r"(?<=\d)(?:,|\{,\}|\\,| )(?=\d{3})", "", self.text)
        return self.tokens.union(re.findall(r"\d+", ungrouped))

    @cached_property
    def _by_letter(self) -> dict[str, list[str]]:
        words: dict[str, list[str]] = {}
        for token in self.tokens:
            words.setdefault(token[:1], []).append(token)
        return words

    def holds(self, token: Token) -> bool:
        """Return whether a sign or a word stands in the text, a word perhaps misspelt."""
        sign, mathematics = token
        near = () if mathematics else self._by_letter.get(sign[:1], ())
        return sign in self.tokens or any(misspelt(sign, word) for word in near)


@dataclass(frozen=True)
class ExtractedProblem:
    """A problem, the post that it was extracted from, and what the prompt says besides."""

    text: str
    post: ShownText
    prompt: str = ""


@dataclass(frozen=True)
class ConvertedProblem:
    """A problem with its answer, the proof that it was made of, the discussion, and what the prompt says besides."""

    text: str
    answer: str
    proof: str
    discussion: str = ""
    prompt: str = ""


@dataclass(frozen=True)
class ExtractedAnswer:
    """An answer, and the discussion that it was extracted from."""

    answer: str
    discussion: str


# -- texts -------------------------------------------------------------------------------------------------------------


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_STRUCTURE = frozenset("^_{}()[]*·×,;/|&'\"") | {"\\frac", "\\\\", "⌊", "⌋", "\\binom", "to", "…", "⦃", "⦄"}
_PLAIN = {
    "sqrt": "√", "sum": "∑", "pi": "π", "triangle": "△", "triangles": "△", "angle": "∠", "angles": "∠",
    "degrees": "°", "degree": "°", "infinity": "∞",
}  # fmt: skip
_DIGITS = {
    word: str(number)
    for number, word in enumerate(
        _words(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen twenty"
        )
    )
}
_FUNCTIONS = _words("sin cos tan cot log ln lim max min gcd lcm mod exp sup inf det deg arcsin arccos arctan")


def contents(text: str) -> list[Token]:
    """Return the contents of a text in order, each with whether it is mathematics. Letters are lower-case, names of
    several letters (ABC) are their letters, and words that ask are left out."""
    tokens: list[Token] = []
    for token, mathematics in Statement.of(text).tokens:
        plain = _PLAIN.get(token.lower(), _DIGITS.get(token, token.lower()))
        if plain != token.lower():
            tokens.append((plain, True))
        elif mathematics and token.isascii() and token.isalpha() and token not in _FUNCTIONS:
            tokens += ((letter, True) for letter in plain)
        elif token not in _STRUCTURE:
            tokens.append((plain, mathematics))
    return tokens


_REFUSAL = re.compile(
    r"(?:there\s(?:is|are|was|were)\s|i\s(?:see|found|find)\s|contains?\s|it\shas\s)?(?:no|not\sa|not\san|none)\b[^.]{0,40}"
    r"\b(?:problems?|questions?|answers?|conversion)\b.{0,60}"
    r"|.{0,60}\b(?:does|do|did|could|can|is|are|was)\s?(?:not|n['’]t)\s(?:seem\sto\s)?"
    r"(?:see|contain|pose|have|include|state|possible|found|find|given|provide|provided|be\s(?:found|converted|determined))\b"
    r".{0,200}"
    r"|(?:it\sis\s)?(?:no|none|n/?a|not\s(?:possible|found|applicable|given|known|available|specified|provided|stated)"
    r"|unknown|impossible|cannot\sbe\s\w+|nothing|see\sabove|[\s.?_-]*)",
    re.I | re.S,
)
_PLACE = re.compile(r"<[^<>]{0,80}\b(?:text|problem|answer|alone|new)\b[^<>]{0,80}>", re.I)


def is_refusal(text: str) -> bool:
    """Return whether a text says that there is nothing, or is the empty form of a reply: "There is no problem here",
    "N/A", "<text of the first problem>"."""
    words = " ".join(re.sub(r"[*_`\"“”$]|\\text|[{}]", "", text).split()).strip(" .!:-")
    return _PLACE.fullmatch(text.strip()) is not None or (len(words) <= 300 and _REFUSAL.fullmatch(words) is not None)


_PROVING = re.compile(
    r"\b(?:prove[sdn]?|proving|proofs?|disprove|show\s+(?:that|why|how)|verify|demonstrate|justify|deduce"
    r"|establish\s+(?:that|the\s+inequality))\b",
    re.I,
)
_ASKING = re.compile(
    r"\b(?:find|determine|compute|calculate|evaluate|solve|what|which|how|who|whose|when|where|express|simplify|count"
    r"|give|state|write|list|name|maximi[sz]e|minimi[sz]e|factori[sz]e|factor|estimate|obtain|identify|describe"
    r"|characteri[sz]e|construct|classify"
    r"|trouver|trouvez|calculer|calculez|d[ée]terminer|d[ée]terminez|quel(?:le)?s?|combien|hallar|halle|encontrar"
    r"|encuentre|determinar|determine|calcular|calcule|cu[aá]l(?:es)?|cu[aá]nt[oa]s?|bestimmen?|berechnen?|finde"
    r"|welche[rsn]?|wie|найти|найдите|вычислите|определите|сколько|calcola|trova|determina|quant[ie])\b",
    re.I,
)
_YES_NO = re.compile(
    r"(?:^|[.?!:,]\s+|\bthen\s+|\bthat\s+)(?:is|are|does|do|can|will|must|has|have|could|should)\b[^.?!]*\?", re.I
)
_WHETHER = re.compile(r"\b(?:whether|is\s+it\s+(?:true|possible)|true\s+or\s+false|prove\s+or\s+disprove)\b", re.I)
_SENTENCE = re.compile(r"(?<=[.?!])\s+(?=[A-Z\\$(])|\n\s*\n")


def asks_for_value(text: str) -> bool:
    """Return whether a text asks for something, and for no proof."""
    return _ASKING.search(text) is not None and _PROVING.search(text) is None


def poses_something(text: str) -> bool:
    """Return whether a text asks for anything: a value, a proof, or yes or no."""
    return any(pattern.search(text) is not None for pattern in (_ASKING, _PROVING, _WHETHER)) or "?" in text


def asks_yes_or_no(text: str) -> bool:
    """Return whether a text asks whether something is so, and for nothing besides."""
    sentences = [s for s in _SENTENCE.split(text) if "?" in s or _WHETHER.search(s) or _ASKING.search(s)]
    last = sentences[-1] if sentences else ""
    return _WHETHER.search(last) is not None or (_YES_NO.search(last) is not None and _ASKING.search(last) is None)


# -- an extracted problem ----------------------------------------------------------------------------------------------

_LEAST_TOKENS, _LEAST_PAIRS = 0.75, 0.45
_LONGEST = 3  # times the post
_SHORT = 6  # tokens; of so few, pairs say nothing


def comes_from(text: str, post: ShownText) -> bool:
    """Return whether most of the mathematics and the words of a text stand in a post.

    - Three quarters of its contents stand there, words perhaps misspelt.
    - 45% of the pairs of neighbours are neighbours there, where there are more than six contents. Of ten real threads,
      problems that were copied and mended have at least 53%, those of other threads at most 33%.
    - Numbers of two digits or more all stand there, and of those of one digit all but one (x_o mended to x_0).

    So small mending passes: formulas in LaTeX, spelling, a name that is written out, context put in front.
    """
    tokens = contents(text) if len(text) <= _LONGEST * len(post.text) + 200 else []
    if not tokens:
        return False
    missing = {token for token, _ in tokens if token.isdigit()} - post.numbers
    if any(len(number) > 1 for number in missing) or len(missing) > 1:
        return False
    share = sum(map(post.holds, tokens)) / len(tokens)
    pairs = list(pairwise(token for token, _ in tokens))
    together = sum(pair in post.pairs for pair in pairs)
    return share >= _LEAST_TOKENS and (len(tokens) <= _SHORT or together >= _LEAST_PAIRS * len(pairs))


def _states_something(text: str) -> bool:
    tokens = contents(text[:1000])
    asks_of_mathematics = len(tokens) >= 2 and "?" in text and any(mathematics for _, mathematics in tokens)
    return len(tokens) >= 3 or asks_of_mathematics or (len(tokens) >= 1 and _ASKING.search(text) is not None)


OF_EXTRACTED: tuple[ReplyCheck[ExtractedProblem], ...] = (
    ReplyCheck("no-refusal", "the problem is a refusal", lambda p: not is_refusal(p.text)),
    ReplyCheck("not-empty", "the problem is empty", lambda p: _states_something(p.text)),
    ReplyCheck("not-example", EXAMPLE, lambda p: not repeats_example(p.prompt, p.post.text, p.text)),
    ReplyCheck("from-post", "the problem is not in the post", lambda p: comes_from(p.text, p.post)),
)
"""What an extracted problem must be."""


# -- an answer ---------------------------------------------------------------------------------------------------------

_ARGUES = re.compile(
    r"\b(?:we|since|because|hence|therefore|thus|so\s+that|proved?|proof|proves|shows?|showed|assume|suppose|clearly|obviously"
    r"|follows|implies|lemma|theorem|cauchy|am-gm|by\s+the|this\s+is|it\s+is|which\s+is|answer\s+is|solution\s+is"
    r"|contradiction|q\.?e\.?d|holds?|true)\b",
    re.I,
)
_WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")


def is_answer(text: str) -> bool:
    """Return whether a text is an answer by its form: mathematics, or a phrase of a few words that argues nothing."""
    plain = bare_answer(text)
    if not plain or len(plain) > MOST_LETTERS or "\n\n" in plain:
        return False
    if is_mathematics(plain):
        return True
    words = _WORD.findall(unwrap(plain))
    return len(words) <= MOST_WORDS and _ARGUES.search(plain) is None and "?" not in plain and ". " not in plain


def bare_answer(text: str) -> str:
    r"""Return an answer without what stands around it: ``$\boxed{5}$.`` is ``5``."""
    text = text.strip().strip("*").strip()
    text = text.rstrip(".").strip() if not text.endswith("..") else text
    for start, end in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}")):
        inner = text[len(start) : len(text) - len(end)]
        if text.startswith(start) and text.endswith(end) and inner.strip() and start not in inner:
            text = inner.strip()
    return text


def is_yes_or_no(text: str) -> bool:
    """Return whether an answer is yes, no, true or false, or says no more."""
    first = re.match(
        r"\W*(yes|no|true|false|proved|proven|disproved)\b(?!\s+solution|\s+such|\s+real|\s+integer)", text, re.I
    )
    kind = closed_class(unwrap(bare_answer(text)))
    return first is not None or (kind is not None and kind[0] in ("truth", "boolean"))


def _stands_in(part: Sequence[str], whole: Sequence[str]) -> Iterator[int]:
    """Yield where ``part`` begins in ``whole``."""
    width = len(part)
    first = part[0] if part else None
    yield from (at for at, sign in enumerate(whole) if sign == first and list(whole[at : at + width]) == list(part))


_HEADER = re.compile(r"^Post \d+:[ \t]*$", re.M)
_FORMULAS = re.compile(r"\$\$?([^$]{1,200})\$|\\\[(.{1,200}?)\\\]|\\\((.{1,200}?)\\\)|\\boxed\{([^{}]{1,120})\}", re.S)
_PLAIN_FORMULA = re.compile(r"(?<![\w.])[-+]?(?:\d[\d.,/^*]{0,40}|[A-Za-z0-9_^(){}+*/-]{1,60}\s?=\s?[^\s,;]{1,60})")


def follows_from(answer: str, discussion: str) -> bool:
    """Return whether an answer stands in a discussion, or is equal as mathematics to a formula that does. Of a phrase,
    its words stand there."""
    plain, text = bare_answer(answer), _HEADER.sub("", discussion)
    part = signs(plain)
    lines = (line for line in text.splitlines() if plain in line)  # most answers stand there as they are written
    if any(next(_stands_in(part, signs(shown)), None) is not None for shown in itertools.chain(lines, [text])):
        return True
    if not is_mathematics(plain):
        source = ShownText(text)
        words = contents(plain)
        return bool(words) and all(map(source.holds, words))
    return any(compare(plain, formula).is_equal for formula in _formulas(text))


def _formulas(text: str) -> list[str]:
    """Return the last formulas of a text, and what stands on the right of their signs of equality."""
    formulas: dict[str, None] = {}
    for match in (*_FORMULAS.finditer(text), *_PLAIN_FORMULA.finditer(text)):
        formula = next((group for group in match.groups() if group), match[0]).strip().rstrip(".,;")
        for part in (formula, *formula.split("=")[1:]):
            if 0 < len(part := part.strip()) <= 120:
                formulas.pop(part, None)
                formulas[part] = None
    return list(formulas)[-MOST_COMPARED:]


OF_ANSWER: tuple[ReplyCheck[ExtractedAnswer], ...] = (
    ReplyCheck("not-yes-or-no", "the answer is yes or no", lambda a: not is_yes_or_no(a.answer)),
    ReplyCheck("no-refusal", "the answer is a refusal", lambda a: not is_refusal(a.answer)),
    ReplyCheck("is-answer", "the answer is a sentence", lambda a: is_answer(a.answer)),
    ReplyCheck(
        "from-discussion", "the answer is not in the discussion", lambda a: follows_from(a.answer, a.discussion)
    ),
)
"""What an extracted answer must be."""


# -- a converted problem -----------------------------------------------------------------------------------------------

_RELATIONS = frozenset(_words("= ≤ ≥ < > ≡ ≈ is are be equals equal exactly most least than"))
_GENERIC = frozenset(
    _words(
        "prove proves proved proof show shows verify true statement holds hold always inequality equality following "
        "all any every must we can that"
    )
)


def gives_itself_away(problem: str, answer: str, proof: str) -> bool:
    """Return whether a problem names its own answer as the proof did.

    A formula counts wherever it stands; a number, or a letter, behind "=", "is", "at most" and the like. What the proof
    says twice and the problem once is taken for a condition (a + b = 1 in front of what is at most 1).
    """
    part = _in_digits(signs(bare_answer(answer)))
    if not part:
        return False

    def count(text: str) -> int:
        whole = _in_digits(signs(text))
        places = _stands_in(part, whole)
        if len(part) > 2 and any(not sign.isalpha() or len(sign) == 1 for sign in part):
            return sum(1 for _ in places)
        return sum(1 for at in places if at and _is_relation(whole, at))

    return count(problem) >= max(1, count(proof))


def _in_digits(tokens: Sequence[str]) -> list[str]:
    return [_DIGITS.get(token, token) for token in tokens]


def _is_relation(whole: Sequence[str], at: int) -> bool:
    before = whole[at - 1]
    return before in _RELATIONS or (before == "to" and at > 1 and whole[at - 2] in ("equal", "congruent"))


def is_proof_again(problem: str, proof: str) -> bool:
    """Return whether a problem states all that the proof states, and in the same words: nothing is left to be found.

    A proof that asks for a value besides ("has a limit, and find it") may become a problem that says no less.
    """
    if Statement.of(problem).tokens == Statement.of(proof).tokens:
        return True
    if _ASKING.search(_PROVING.sub("", proof)):
        return False
    new, old = contents(problem), contents(proof)
    if Counter(token for token, math in old if math) - Counter(token for token, math in new if math):
        return False
    new_words, old_words = ({token for token, math in tokens if not math} - _GENERIC for tokens in (new, old))
    return all(
        any(word == other or misspelt(word, other) for other in rest)
        for words, rest in ((new_words, old_words), (old_words, new_words))
        for word in words
    )


_LEAST_OF_PROOF = 0.4


def speaks_of(problem: str, proof: str) -> bool:
    """Return whether a problem is about what its proof is about: 40% of its contents stand there, words perhaps
    misspelt. Of problems that ask for the value in a proof it is half or more, of others a quarter."""
    source, tokens = ShownText(proof), contents(problem)
    return sum(map(source.holds, tokens)) >= _LEAST_OF_PROOF * len(tokens)


OF_CONVERTED: tuple[ReplyCheck[ConvertedProblem], ...] = (
    ReplyCheck("no-refusal", "the problem is a refusal", lambda p: not is_refusal(p.text)),
    ReplyCheck("not-empty", "the problem is empty", lambda p: _states_something(p.text)),
    ReplyCheck("not-long", "the problem is too long", lambda p: len(p.text) <= _LONGEST * len(p.proof) + 1000),
    ReplyCheck("no-proof", "the problem still asks for a proof", lambda p: _PROVING.search(p.text) is None),
    ReplyCheck("asks-value", "the problem asks for nothing", lambda p: asks_for_value(p.text) or "?" in p.text),
    ReplyCheck("not-yes-or-no", "the problem asks yes or no", lambda p: not asks_yes_or_no(p.text)),
    ReplyCheck("not-again", "the problem is its proof again", lambda p: not is_proof_again(p.text, p.proof)),
    ReplyCheck("answer-yes-or-no", "the answer is yes or no", lambda p: not is_yes_or_no(p.answer)),
    ReplyCheck("answer-refusal", "the answer is a refusal", lambda p: not is_refusal(p.answer)),
    ReplyCheck("answer-is-answer", "the answer is a sentence", lambda p: is_answer(p.answer)),
    ReplyCheck(
        "not-given-away",
        "the problem gives its answer away",
        lambda p: not gives_itself_away(p.text, p.answer, p.proof),
    ),
    ReplyCheck(
        "not-example",
        EXAMPLE,
        lambda p: not repeats_example(p.prompt, p.proof, p.text, bare_answer(p.answer), p.discussion),
    ),
    ReplyCheck("of-proof", "the problem is not about its proof", lambda p: speaks_of(p.text, p.proof)),
)
"""What a converted problem must be."""

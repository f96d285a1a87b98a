"""The stand-in's part in judging and in making a problem set: what it writes for extract, classify, convert, answer,
decontaminate, judge, and for the votes on programs.

Each function is given the fields of the prompt, a seeded generator and the rate of errors, and returns the text that
a large language model would be asked for.
"""

from __future__ import annotations

import random
import re
from collections import Counter

from nemo_openmath.demo import forms, world
from nemo_openmath.demo.forms import Form, Posed

_REPLY = re.compile(r"^Post \d+:\n", re.M)
_QUOTE = re.compile(r"\[quote\](.*?)\[/quote\]\s*", re.S)
_CLAIM = re.compile(r"(?:get|is|says|here,|Yes,|be|prints) \$?(-?\d+)\$?")
_PROGRAM = re.compile(r"(`{3,})python\n(.*?)\n\1\n\n\1output\n(.*?)\n?\1", re.S)
_CORRECTION = re.compile(r"No,|Check|Sorry")


def extract_problems(post: str, rng: random.Random, error: float) -> str:
    """Return the post's problems, word for word; an error leaves one out or cuts its end off."""
    texts = [p.text for p in forms.read(post)]
    if texts and rng.random() < error:
        at = rng.randrange(len(texts))
        texts[at : at + 1] = [] if rng.random() < 0.5 else [texts[at][: len(texts[at]) // 2]]
    return "\n".join(f"Problem {at}: {text}" for at, text in enumerate(texts, 1)) or "No problem"


def classify(problem: str, asked: Form, rng: random.Random, error: float) -> str:
    """Return whether the problem is of the form that is asked about; an error says the opposite."""
    read = _one(problem)
    is_asked = (read.form if read else Form.INVALID) is asked
    verdict = "yes" if is_asked != (rng.random() < error) else "no"
    return f"Why: that is how I read it.\nVerdict: {verdict}"


def convert_proof(problem: str, discussion: str, rng: random.Random, error: float) -> str:
    """Return a problem that asks for the value which the proof problem hides; an error gives a wrong answer."""
    read = _one(problem)
    if read is None or read.form is not Form.PROOF or read.item is None:
        return "Not possible"
    answer = read.claim or read.item.answer
    if rng.random() < error:
        answer = str(int(answer) + rng.randint(1, 5))
    item = world.make_item(read.item.kind, read.item.params, rng.randrange(2))
    return f"Problem: {item.statement}\nAnswer: {answer}"


def extract_answer(problem: str, discussion: str, rng: random.Random, error: float) -> str:
    """Return what the replies settle on: the last correction, else the answer that most of them give, else "Not
    found". An error takes another answer that stands there, or none."""
    settled: str | None = None
    answers: Counter[str] = Counter()
    for reply in _REPLY.split(discussion)[1:]:
        quote = _QUOTE.match(reply)
        if quote is not None and quote.group(1) != problem:
            continue
        claim = _CLAIM.search(reply, quote.end() if quote else 0)
        if claim is None:
            continue
        answers[claim.group(1)] += 1
        if _CORRECTION.match(reply, quote.end() if quote else 0):
            settled = claim.group(1)
    ranked = answers.most_common(2)
    if settled is None and ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
        settled = ranked[0][0]
    if rng.random() < error:
        wrong = sorted(claim for claim in answers if claim != settled)
        settled = rng.choice(wrong) if wrong and rng.random() < 0.5 else None
    return f"Answer: {settled}" if settled is not None else "Not found"


def decontaminate(problem: str, candidate: str, family: bool, rng: random.Random, error: float) -> str:
    """Return whether both pose the same problem of the world, or are the same words. ``family``: problems of one kind
    that differ in their numbers alone are the same."""
    first, second = _one(problem), _one(candidate)
    if first and second and first.item and second.item:
        same = first.item.key == second.item.key or (family and first.item.kind == second.item.kind)
    else:
        same = _words(problem) == _words(candidate)
    verdict = "yes" if same != (rng.random() < error) else "no"
    return f"Why: that is how I read them.\nVerdict: {verdict}"


def judge(predicted: str, expected: str, rng: random.Random, error: float) -> str:
    """Return whether the two answers mean the same number."""
    same = _number(predicted) == _number(expected)
    verdict = "Yes" if same != (rng.random() < error) else "No"
    how = "mean the same" if verdict == "Yes" else "differ"
    return f"The predicted answer {predicted} and the expected answer {expected} {how}.\nJudgement: {verdict}"


def classify_novelty(fragment: str, rng: random.Random, error: float) -> str:
    """Return whether the program of a fragment finds something new.

    As all of this it stands in for a model: the program is new unless what it printed stands in the text before it.
    """
    before, _, output = _parts(fragment)
    known = bool(output) and output in re.findall(r"-?\d+", before)
    return _judgement(("verification", "novel"), 0 if known else 1, rng, error)


def classify_significance(fragment: str, rng: random.Random, error: float) -> str:
    """Return how much work the program of a fragment saves, a stand-in's rule: a loop much, a line without one little,
    anything else something between."""
    _, code, _ = _parts(fragment)
    loops = re.search(r"\b(?:for|while)\b", code) is not None
    weight = 2 if loops else int(len(code.splitlines()) > 1)
    return _judgement(("trivial", "moderate", "significant"), weight, rng, error)


def _judgement(words: tuple[str, ...], right: int, rng: random.Random, error: float) -> str:
    word = rng.choice([w for w in words if w != words[right]]) if rng.random() < error else words[right]
    return f"The program and the text before it were compared.\nJudgement: {word}"


def _parts(fragment: str) -> tuple[str, str, str]:
    """The text before the program, the program, and what it printed."""
    match = _PROGRAM.search(fragment)
    return (fragment[: match.start()], match[2], match[3].strip()) if match else (fragment, "", "")


def _one(problem: str) -> Posed | None:
    problems = forms.read(problem)
    return problems[0] if problems else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _number(answer: str) -> str:
    plain = re.sub(r"[\s$,]|\\[,!;]", "", answer).rstrip(".")
    return str(int(plain)) if re.fullmatch(r"[+-]?\d{1,400}", plain) else plain

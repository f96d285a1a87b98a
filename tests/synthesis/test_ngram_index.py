"""The index returns what comparing a text with every other one returns."""

import random
from collections.abc import Callable

import pytest

from nemo_openmath.synthesis.problems.ngram_index import NgramIndex, normalised


def grams(text: str, ngram: int) -> set[str]:
    plain = normalised(text)
    return {plain[i : i + ngram] for i in range(max(1, len(plain) - ngram + 1))}


def by_hand(
    texts: list[tuple[str, str]], ngram: int, threshold: float, text: str, count: int
) -> list[tuple[float, str, str]]:
    own = grams(text, ngram)
    scored = [(len(own & theirs) / len(own | theirs), n) for n, theirs in enumerate(grams(t, ngram) for _, t in texts)]
    scored = sorted((pair for pair in scored if pair[0] >= max(threshold, 1e-9)), key=lambda pair: (-pair[0], pair[1]))
    return [(score, *texts[n]) for score, n in scored[:count]]


def of_words(rng: random.Random) -> str:
    return " ".join(
        rng.choices(["find", "the", "least", "prime number", "n", "such that", "x^2+1", "Ärger", "数学"], k=9)
    )


def of_letters(rng: random.Random) -> str:
    return "".join(rng.choices("ab \U0001d54f$", k=rng.randrange(12)))


def of_a_template(rng: random.Random) -> str:
    a, b = rng.randrange(100), rng.randrange(100)
    return rng.choice([f"Tom has {a} apples and eats {b}: how many are left?", f"How many of {a} cars with {b} doors?"])


@pytest.mark.parametrize("make", [of_words, of_letters, of_a_template])
@pytest.mark.parametrize("ngram", [1, 4, 8])
def test_the_same_candidates_as_by_comparing_all(make: Callable[[random.Random], str], ngram: int) -> None:
    rng = random.Random(1)
    texts = [(str(n), make(rng)) for n in range(100)]
    queries = [make(rng) for _ in range(25)] + [text for _, text in texts[:5]] + ["", "x", "nothing is like this one"]
    for threshold in (0.0, 0.3, 0.8, 1.0):
        index = NgramIndex(iter(texts), ngram=ngram, threshold=threshold)
        for text in queries:
            for count in (1, 5):
                assert index.nearest(text, count) == by_hand(texts, ngram, threshold, text, count)


def test_nothing_is_near_where_there_is_nothing() -> None:
    assert NgramIndex([], ngram=8, threshold=0.3).nearest("Find x.", 5) == []


def test_a_reworded_problem_is_near_and_another_is_not() -> None:
    texts = [
        ("b1", "Find the remainder when $7^{100}$ is divided by 13."),
        ("b2", "How many positive integers up to 500 are divisible by 3 but not by 7?"),
    ]
    index = NgramIndex(texts, ngram=8, threshold=0.3)
    ((score, identifier, _),) = index.nearest("What is the remainder when 7^100 is divided by 13?", 2)
    assert identifier == "b1"
    assert score > 0.4
    assert index.nearest("find the remainder, when 7^{100} is divided by 13", 1)[0][0] == 1.0
    assert index.nearest("Prove that a triangle has three sides.", 2) == []

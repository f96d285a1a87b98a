"""Planted leaks are among the candidates, whatever was done to them, and similarities are those of comparing all."""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from nemo_openmath.core.errors import MissingExtra, UserError
from nemo_openmath.demo.world import make_benchmark
from nemo_openmath.synthesis.problems.embedding_retriever import EmbeddingRetriever, check_embedding, load_encoder
from nemo_openmath.synthesis.problems.retrievers import OWN, LexicalRetriever
from nemo_openmath.synthesis.problems.statement import Statement
from nemo_openmath.synthesis.problems.word_index import WordIndex

LEAKS = [json.loads(line) for line in (Path(__file__).parent / "planted_leaks.jsonl").read_text().splitlines()]
REAL = Path(__file__).parents[3] / "shared" / "data" / "comp-math-24-25.jsonl"
WORLD = [item.statement for item in make_benchmark(1, 300)]


def recall(texts: Sequence[str], leaks: Sequence[tuple[int, str]], count: int = 5) -> float:
    retriever = LexicalRetriever(texts, ngram=8, threshold=0.1, stand_out=1.4)
    near = retriever.nearest([text for _, text in leaks], count)
    hits = [number in [n for _, n in each] for (number, _), each in zip(leaks, near, strict=True)]
    return sum(hits) / len(hits)


def in_other_letters(text: str) -> str:
    return text.translate(str.maketrans("aeopcx", "аеорсх"))


def real_problems() -> list[str]:
    if not REAL.exists():
        pytest.skip(f"{REAL} is not here")
    return [json.loads(line)["problem"] for line in REAL.read_text().splitlines()]


@pytest.mark.parametrize(
    ("sort", "least"), [("reordered", 1.0), ("renamed", 1.0), ("paraphrased", 11 / 12), ("constants", 1.0)]
)
def test_own_leaks_are_among_five_candidates(sort: str, least: float) -> None:
    texts = [*WORLD, *(leak["problem"] for leak in LEAKS)]
    assert recall(texts, [(len(WORLD) + n, leak[sort]) for n, leak in enumerate(LEAKS)]) >= least


def test_a_rewording_is_found_among_many_of_its_template() -> None:
    """The others share its words but not its numbers."""
    items = make_benchmark(1, 300)
    assert recall(WORLD, [(n, item.reworded().statement) for n, item in enumerate(items)]) >= 0.98


def test_of_texts_that_are_similar_alike_none_stands_out() -> None:
    """Thirty share a word with the query, one shares all others; so it is with a text that is given beside them."""
    query = "odd primes divide powers"
    texts = [f"{'odd' if number < 30 else 'even'} circle{number}" for number in range(90)]
    leak = "divide powers by primes that are odd"
    for stand_out, most in ((1.4, 1), (0.0, 5)):
        retriever = LexicalRetriever([*texts, leak], ngram=8, threshold=0.01, stand_out=stand_out)
        (near,) = retriever.nearest([query], 5)
        assert (near[0][1], len(near)) == (90, most)
        without = LexicalRetriever(texts, ngram=8, threshold=0.01, stand_out=stand_out)
        beside = without.nearest_with(query, leak, 5)
        assert [n for _, n in beside] == [OWN if n == 90 else n for _, n in near]


def reordered(text: str, rng: random.Random) -> str:
    parts = re.split(r"(?<=[.,;?])\s+", text)
    rng.shuffle(parts)
    return " ".join(parts)


def renamed(text: str, rng: random.Random) -> str:
    """Every letter that stands alone in a formula becomes another one, the same everywhere."""
    cases = ("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    names = str.maketrans("".join(cases), "".join("".join(rng.sample(case, 26)) for case in cases))
    letters = re.compile(r"\\[A-Za-z]+|(?<![A-Za-z])(?:[A-Za-z]|[A-Z]{2,4})(?![A-Za-z])")
    return re.sub(
        r"\$.+?\$",
        lambda formula: letters.sub(lambda m: m[0] if m[0][0] == "\\" else m[0].translate(names), formula[0]),
        text,
        flags=re.S,
    )


def other_constants(text: str, rng: random.Random) -> str:
    new: dict[str, str] = {}
    return re.sub(r"\d+", lambda m: new.setdefault(m[0], str(int(m[0]) + rng.randint(1, 30))), text)


REAL_LEAKS: dict[str, tuple[Callable[[str, random.Random], str], float]] = {
    "in another form": (lambda text, _: "  ".join(text.replace("$", "").upper().split()), 1.0),
    "in letters that look alike": (lambda text, _: in_other_letters(text), 1.0),
    "reordered": (reordered, 1.0),
    "renamed": (renamed, 1.0),
    "other constants": (other_constants, 0.99),
    "all three": (lambda text, rng: other_constants(renamed(reordered(text, rng), rng), rng), 0.99),
}


@pytest.mark.parametrize("sort", REAL_LEAKS)
def test_real_leaks_are_among_five_candidates(sort: str) -> None:
    texts = [*real_problems(), *WORLD]
    leak, least = REAL_LEAKS[sort]
    assert recall(texts, [(n, leak(texts[n], random.Random(n))) for n in range(0, len(texts) - len(WORLD), 2)]) >= least


def cosines(texts: Sequence[str], query: str) -> list[float]:
    """The similarities as the docstring of word_index.py defines them, with dictionaries."""

    def words(text: str) -> Counter[str]:
        tokens = Statement.of(text).tokens
        kept = [t for t, sign in tokens if not (sign and t.isascii() and t.isalpha() and len(t) == 1)]
        return Counter([*kept, *(t for t in kept if t.isdigit())])  # numbers count twice

    counts = [words(text) for text in texts]
    df = Counter(word for count in counts for word in count)

    def vector(count: Counter[str]) -> dict[str, float]:
        weights = {w: (1 + math.log(n)) * math.log((len(texts) + 1) / df.get(w, 1)) for w, n in count.items()}
        norm = math.hypot(*weights.values()) or 1.0
        return {word: weight / norm for word, weight in weights.items()}

    own = vector(words(query))
    return [sum(weight * own.get(word, 0.0) for word, weight in vector(count).items()) for count in counts]


def test_similarity_by_words_is_that_of_comparing_all() -> None:
    rng = random.Random(1)
    words = ["find", "the", "sum", "prime", "circle", "odd", "graph", "path", "tree", "set", "12", "7", "\\sqrt"]
    weights = [1 / n for n in range(1, len(words) + 1)]
    texts = [" ".join(rng.choices(words, weights, k=rng.randrange(1, 15))) for _ in range(200)]
    index = WordIndex(texts, threshold=0.0)
    for query in [*texts[:10], "odd circle of nothing else", "unknown", ""]:
        expected = cosines(texts, query)
        nearest = index.nearest(query, 7)
        assert [score for score, _ in nearest] == pytest.approx(
            sorted((score for score in expected if score > 1e-9), reverse=True)[:7], abs=1e-5
        )
        for score, number in nearest:
            assert score == pytest.approx(expected[number], abs=1e-5)
        assert index.similarity(query, texts[3]) == pytest.approx(expected[3], abs=1e-6)
    assert WordIndex([], threshold=0.0).nearest("odd", 5) == []


def test_numbers_are_the_same_in_words_and_with_separators() -> None:
    index = WordIndex(["twenty-four cubes", "6,000,000 cubes", "17 cubes"], threshold=0.5)
    assert [number for query in ("24", "6000000", "seventeen") for _, number in index.nearest(query, 1)] == [0, 1, 2]


# -- embeddings --------------------------------------------------------------------------------------------------------


class CountedLetters:
    """An encoder made by hand: how often each letter stands in a text. It counts the texts that it was given."""

    def __init__(self) -> None:
        self.encoded = 0

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.encoded += len(texts)
        return np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], np.float32)


def test_embeddings_are_compared_with_all_and_those_of_the_benchmark_are_kept(tmp_path: Path) -> None:
    encode = CountedLetters()

    def retriever(texts: Sequence[str], identity: str = "letters") -> EmbeddingRetriever:
        return EmbeddingRetriever(texts, encode=encode, identity=identity, threshold=0.9, cache=tmp_path)

    made = retriever(WORLD)
    queries = [leak["problem"] for leak in LEAKS] + ["", WORLD[7]]
    vectors = encode([*WORLD, *queries]).astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    for near, own in zip(made.nearest(queries, 4), vectors[len(WORLD) :], strict=True):
        expected = sorted((-score, n) for n, score in enumerate((vectors[: len(WORLD)] @ own).tolist()) if score >= 0.9)
        assert [score for score, _ in near] == pytest.approx([-score for score, _ in expected[:4]], abs=1e-6)
    assert made.nearest([WORLD[7]], 1)[0][0][0] == pytest.approx(1.0)
    beside = retriever(WORLD[:-1]).nearest_with(WORLD[-1], WORLD[-1], 9)
    (near,) = retriever(WORLD).nearest([WORLD[-1]], 9)
    assert OWN in [n for _, n in beside]
    assert [len(WORLD) - 1 if n == OWN else n for _, n in beside] == [n for _, n in near]
    before = encode.encoded
    assert retriever(WORLD).nearest(queries, 4) == made.nearest(queries, 4)
    assert encode.encoded == before + 2 * len(queries), "the benchmark was not embedded again"
    retriever(WORLD[1:]), retriever(WORLD, "another model")
    assert encode.encoded == before + 2 * len(queries) + 2 * len(WORLD) - 1
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    retriever(WORLD, "another model")
    assert encode.encoded == before + 2 * len(queries) + 3 * len(WORLD) - 1, "a file that was cut off is made anew"


def test_letters_that_look_alike_are_one_for_embeddings(tmp_path: Path) -> None:
    """In the benchmark, in the query and in a text that is given beside it, as for the lexical retriever."""
    strange = [in_other_letters(text) for text in WORLD]
    assert not any(text.isascii() for text in strange)
    for texts, queries in ((WORLD, strange), (strange, WORLD)):
        made = EmbeddingRetriever(texts, encode=CountedLetters(), identity="a", threshold=0.9, cache=tmp_path)
        nearest = made.nearest(queries[:9], len(WORLD))
        same = [[score for score, at in near if at == number] for number, near in enumerate(nearest)]
        assert same == [[pytest.approx(1.0)]] * 9
        without = EmbeddingRetriever(texts[1:], encode=CountedLetters(), identity="b", threshold=0.9, cache=tmp_path)
        beside = without.nearest_with(queries[0], texts[0], len(WORLD))
        assert [score for score, at in beside if at == OWN] == [pytest.approx(1.0)]


def test_an_embedding_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite"):
        EmbeddingRetriever(
            ["a"], encode=lambda texts: np.full((len(texts), 2), np.nan), identity="n", threshold=0, cache=tmp_path
        )


def test_without_the_package_the_extra_is_named(tmp_path: Path) -> None:
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match="sentence-transformers"):
            check_embedding("any")
    else:
        with pytest.raises(UserError, match=r"no modules\.json"):
            check_embedding(str(tmp_path))


def test_a_sentence_transformers_model_gives_what_its_own_search_gives(tmp_path: Path) -> None:
    """The model is a bag of words with weights drawn at random: it knows no language."""
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers import util
    from sentence_transformers.models import BoW

    vocabulary = sorted({word for text in WORLD for word in re.findall(r"[a-z]+", text.lower())})
    rng = random.Random(1)
    weights = {word: rng.uniform(0.5, 2.0) for word in vocabulary}
    folder = tmp_path / "model"
    library.SentenceTransformer(modules=[BoW(vocabulary, weights)], device="cpu").save(str(folder))
    check_embedding(str(folder))
    encode = load_encoder(str(folder))
    made = EmbeddingRetriever(WORLD, encode=encode, identity="bag of words", threshold=0.0, cache=tmp_path)
    queries = WORLD[:20] + [leak["problem"] for leak in LEAKS]
    expected = util.semantic_search(encode(queries), encode(WORLD), top_k=5)
    for near, hits in zip(made.nearest(queries, 5), expected, strict=True):
        assert [score for score, _ in near] == pytest.approx([hit["score"] for hit in hits], abs=1e-5)

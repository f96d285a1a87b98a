"""Guesses as trees: what n-grams and a drafter say, what is learned of them, and how many of them pay."""

import shutil
from bisect import bisect
from itertools import count

import numpy as np
import pytest

from nemo_openmath.core.errors import DamagedFile
from nemo_openmath.inference.embedded.drafters import Both
from nemo_openmath.inference.embedded.guesses import TextColumns, Trees
from nemo_openmath.inference.embedded.ngrams import LENGTHS, SHARES, NgramProposer
from nemo_openmath.inference.embedded.pace import MOST, PLAIN, Chances, Pace
from nemo_openmath.inference.embedded.redrafter import RedrafterProposer
from nemo_openmath.inference.embedded.rows import RowTable
from nemo_openmath.models.drafter_texts import load_texts, save_texts

LONGEST, SINGLES, GUESSED = 16, 4, 24  # of guess.h

compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def guesses_of(proposer, rows, most=None, level=1):
    """The tokens, parents and classes that are guessed for each of ``rows``."""
    trees = Trees(len(rows))
    most = np.full(len(rows), 99) if most is None else np.array(most)
    proposer.propose(np.array(rows), most, level, trees)
    return [trees.of(i) for i in range(len(rows))]


def written(table, row, *ids):
    """Write a row's text, which is whole when it has as many tokens as there is room for."""
    table.set_ids(row, np.array(ids, np.int32))
    table.full_length[row] = table.ids.shape[1]


def by_search(texts: list[list[int]], most: int, share: np.ndarray) -> dict[tuple[int, ...], int]:
    """The class of each guess, by the tokens that lead to it, for the end of the last of some texts that came one after
    the other: written down a second time."""
    ids, found = texts[-1], []
    for number, text in enumerate(texts):
        for end in range(1, len(text)):
            same = next(k for k in count() if k == min(end, len(ids), LONGEST) or text[end - 1 - k] != ids[-1 - k])
            if same:
                own = number == len(texts) - 1
                found.append((same, own, (10 if own else 1) * 3 ** min(same, 8), text[end : end + most]))
    found = [f for f in found if f[0] > 1] + [f for f in found[::-1] if f[0] == 1][:SINGLES]
    kinds = {}

    def extend(path, places, chance):
        for token in dict.fromkeys(f[3][len(path)] for f in places if len(f[3]) > len(path)):
            saying = [f for f in places if len(f[3]) > len(path) and f[3][len(path)] == token]
            length = max(f[0] for f in saying)
            # of equally long matches the most recent one says whether it is the own text; that is the last of all
            own = any(f[1] for f in saying if f[0] == length)
            said = sum(f[2] for f in saying) / sum(f[2] for f in places)
            by_length = bisect(LENGTHS, length + len(path)) - 1
            kind = (by_length * len(SHARES) + bisect((0.2, 0.4, 0.6, 0.8, 0.999), said)) * 2 + own
            if chance * share[kind] > 0.02:
                kinds[*path, token] = kind
                if len(path) + 1 < most:
                    extend((*path, token), saying, chance * share[kind])

    extend((), found, 1.0)
    return kinds


@compiler
@pytest.mark.parametrize("sure", [False, True])
def test_ngrams_are_those_of_a_search_through_all_texts(sure):
    """All of them, or, where they are too many, the likeliest."""
    draw = np.random.default_rng(0)
    texts = [draw.integers(6, size=int(n)).tolist() for n in draw.integers(20, 40, 5)]
    table = RowTable(len(texts), 64)
    proposer = NgramProposer(table, 6, 64)
    if sure:
        proposer.expected[:] = 0.9
    whole = full = 0
    for own, ids in enumerate(texts):
        for n in range(1, len(ids) + 1):
            written(table, own, *ids[:n])
            ((tokens, parents, kinds),) = guesses_of(proposer, [own], [3])
            paths: list[tuple[int, ...]] = []
            for token, parent in zip(tokens, parents, strict=True):
                paths.append((*(paths[parent] if parent >= 0 else ()), token))
            wanted = by_search([*texts[:own], ids[:n]], 3, proposer.expected)
            got = dict(zip(paths, kinds, strict=True))
            assert len(got) == len(paths)
            if len(got) < GUESSED:
                whole += 1
                assert got == wanted
            else:
                full += 1
                assert got.items() <= wanted.items()
                assert max(map(len, got)) <= min(map(len, wanted.keys() - got.keys()), default=3)
            depths = [len(path) for path in paths]
            branch = next((i for i, depth in enumerate(depths) if depth != i + 1), len(depths))
            assert all(parent == i - 1 for i, parent in enumerate(parents[:branch]))
    assert whole > 20
    assert (full > 3) is sure


@compiler
def test_ngrams_guess_what_followed_where_the_last_tokens_stood():
    table = RowTable(4, 64)
    proposer = NgramProposer(table, 20, 64)
    written(table, 0, 1, 2, 3, 4, 5, 6)
    written(table, 1, 2, 3, 9, 1, 2, 3)
    first, second = guesses_of(proposer, [0, 1], [3, 3])
    assert first == ([], [], [])
    # [1, 2, 3] stood in the other text, and [2, 3] in the own one, which counts more
    assert second[:2] == ([9, 1, 2, 4, 5, 6], [-1, 0, 1, -1, 3, 4])
    assert [kind % 2 for kind in second[2]] == [1, 1, 1, 0, 0, 0]
    proposer.begin(0)  # its request is gone, the text is not
    proposer.move(1, 2)
    table.move(1, 2)
    assert guesses_of(proposer, [2], [1])[0][0] == [9, 4]
    written(table, 1, 7, 1, 2, 3)
    assert guesses_of(proposer, [1], [1])[0][0] == [4, 9]
    written(table, 0, 7, 5)  # one token alone stood before, in another text
    assert guesses_of(proposer, [0], [2])[0][:2] == ([6], [-1])
    written(table, 3, *[11, 12, 13] * 7, 11, 12)
    assert guesses_of(proposer, [3], [4])[0][:2] == ([13, 11, 12, 13], [-1, 0, 1, 2])
    assert guesses_of(proposer, [3], [4])[0][2][0] >= proposer.sure


@compiler
def test_texts_of_a_drafter_are_looked_into_from_the_start(tmp_path):
    """They lie in its folder; a file that holds others is named."""
    texts = [np.array(ids, np.int32) for ids in ([9, 8, 7, 6], [5], [1, 2, 3, 4, 5])]
    save_texts(tmp_path, texts)
    found = load_texts(tmp_path, 10)
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in texts]
    table = RowTable(1, 16)
    written(table, 0, 9, 1, 2)
    assert guesses_of(NgramProposer(table, 10, 16), [0]) == [([], [], [])]
    proposer = NgramProposer(table, 10, 16, found)
    assert guesses_of(proposer, [0], [2])[0][:2] == ([3, 4], [-1, 0])
    with pytest.raises(DamagedFile, match="texts of 9 tokens"):
        load_texts(tmp_path, 9)
    path = tmp_path / "texts.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedFile, match=r"texts\.safetensors"):
        load_texts(tmp_path, 10)
    path.unlink()
    save_texts(tmp_path, [])
    assert load_texts(tmp_path, 10) == []


@compiler
def test_texts_are_forgotten_before_they_are_too_many():
    """And those of the rows are read again; a text that is too long alone has no guesses."""
    table = RowTable(2, 200)
    proposer = NgramProposer(table, 10, 200, most_tokens=50)
    written(table, 1, 1, 2, 3, 1, 2)
    for start in range(0, 400, 10):
        proposer.begin(0)
        written(table, 0, *[4 + (start + i) % 5 for i in range(10)])
        trees = guesses_of(proposer, [0, 1], [1, 1])
        assert trees[1][0][0] == 3
        assert proposer._log.used <= 50
    written(table, 0, *[5] * 60)
    assert guesses_of(proposer, [0], [1]) == [([], [], [])]
    written(table, 0, *[5] * 30)
    proposer.begin(0)
    assert guesses_of(proposer, [0], [1])[0][0] == [5]


class Chosen:
    """A pace for ``rows`` rows, whose guesses are put in by hand."""

    def __init__(self, expected, rows=1, levels=1):
        self.table = RowTable(rows, 512)
        for row in range(rows):
            written(self.table, row, 5)
        self.texts, self.into, self.trees = TextColumns(self.table, 512), Trees(rows), Trees(rows)
        self.pace = Pace(Chances(np.array(expected), rows), levels)

    def choose(self, *guesses):
        """The tokens and parents that are chosen of trees of (tokens, parents, classes)."""
        for i, tree in enumerate(guesses):
            self.trees.put(i, *tree)
        self.pace.choose(self.texts, np.arange(len(guesses)), self.trees, self.into)
        return [self.into.of(i)[:2] for i in range(len(guesses))]


def chain(n, kind):
    return [7] * n, list(range(-1, n - 1)), [kind] * n


@compiler
def test_the_pace_takes_what_makes_the_most_tokens_a_second():
    """Against all prefixes of the likeliest guesses, with costs that it has seen."""
    costs = {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.35, 6: 1.7, 8: 2.2, 12: 3.0, 16: 4.5}
    made = Chosen([0.9, 0.2], rows=2)
    cost = made.pace.cost
    for _ in range(300):
        for tokens, seconds in costs.items():
            cost.measured(tokens, tokens > 2, seconds)
    assert cost(8, True) / cost(1, False) == pytest.approx(2.2, rel=0.02)
    assert cost(7, True) / cost(1, False) == pytest.approx(1.95, rel=0.02)
    chances = sorted([0.9**n for n in range(1, 7)] + [0.2**n for n in range(1, 7)], reverse=True)
    rates = [(2 + sum(chances[:n])) / cost(2 + n, n > 0) for n in range(13)]
    (likely, parents), (unlikely, _) = made.choose(chain(6, 0), chain(6, 1))
    assert len(likely) + len(unlikely) - 2 == int(np.argmax(rates))
    assert likely == [5] + [7] * (len(likely) - 1)
    assert parents == list(range(-1, len(likely) - 1))
    assert len(likely) > len(unlikely)


@compiler
def test_a_guess_is_taken_with_what_is_before_it():
    made = Chosen([1.0, 1.0, 0.01])
    ((tokens, parents),) = made.choose(([1, 2, 3, 4], [-1, -1, 1, 2], [2, 0, 1, 0]))
    assert (tokens, parents) == ([5, 2, 3, 4], [-1, 0, 1, 2])


@compiler
def test_outcomes_are_learned_as_far_as_the_text_has_come():
    """A guess behind a wrong one says nothing; nothing is learned before all is known."""
    made = Chosen([0.5, 0.5, 0.5, 0.5])
    tree = [1, 2, 3, 4], [-1, 0, -1, 2], [0, 1, 2, 3]
    share = made.pace.chances.share
    made.choose(tree)
    written(made.table, 0, 5, 3)
    made.choose(tree)
    assert share.tolist() == [0.5] * 4  # whether 4 comes is not known yet
    written(made.table, 0, 5, 3, 9)
    made.choose(([], [], []))
    third = 1 / 3  # two guesses are assumed beforehand
    assert share.tolist() == pytest.approx([third, 0.5, 2 * third, third])


def looks_of(made: Chosen, turns: int, *, rows: int, took: float) -> list[bool]:
    """Whether each of some turns looks for guesses, of which each row has one; a look takes ``took`` plain passes."""
    looks, pace = [], made.pace
    for _ in range(turns):
        looks.append(pace.looks(rows))
        if looks[-1]:
            made.choose(*[chain(1, 0)] * rows)
            pace.looked(took * pace.cost(rows, False) * pace.cost.level)
    return looks


@compiler
def test_where_guesses_do_not_pay_the_pace_looks_rarely_and_again_with_fewer_rows():
    made = Chosen([0.01], rows=16)
    made.pace.cost.measured(16, False, 1.0)
    looks = looks_of(made, 600, rows=16, took=0.02)
    assert looks.index(True) == 15
    assert sum(looks[200:]) <= 400 // 64 + 1
    assert any(made.pace.looks(2) for _ in range(2))
    assert not Chosen([0.9]).pace.looks(MOST)


@compiler
@pytest.mark.parametrize(("took", "always"), [(0.1, True), (10.0, False)])
def test_a_drafter_that_takes_longer_than_it_saves_is_asked_rarely(took, always):
    made = Chosen([0.9])
    made.pace.cost.measured(1, False, 1.0)
    looks = looks_of(made, 300, rows=1, took=took)
    assert sum(looks) == 300 - 300 // PLAIN if always else sum(looks) < 15


@compiler
@pytest.mark.parametrize(("took", "best"), [(0.1, 2), (0.9, 1), (3.0, 1)])
def test_the_dearer_look_rests_where_the_cheaper_one_is_faster(took, best):
    """The cheaper one finds a guess of five in ten, the dearer one of nine; with 8 rows both are worth nothing here."""
    made = Chosen([0.5, 0.9], levels=2)
    pace = made.pace
    for tokens in (1, 2, 3, 4):
        for _ in range(50):
            pace.cost.measured(tokens, tokens > 1, 1 + 0.05 * (tokens - 1))
    looks = []
    for _ in range(300):
        looks.append(pace.looks(1))
        if looks[-1]:
            made.choose(chain(1, looks[-1] - 1))
            pace.looked({1: 0.01, 2: took}[looks[-1]] * pace.cost.level)
    counts = [looks[100:].count(level) for level in range(3)]
    assert counts[best] > 200 * 0.9
    assert 0 < counts[3 - best] <= 200 / 64 + 1, "the other one is tried now and then"
    assert counts[0] == 200 // PLAIN + (counts[0] > 200 // PLAIN)


@compiler
def test_the_price_of_guesses_does_not_become_that_of_plain_passes():
    """Though nearly all passes have guesses, that are dearer than was assumed."""
    pace = Pace(Chances(np.array([0.5]), 1))
    for turn in range(600):
        pace.cost.measured(1 if turn % PLAIN == 0 else 6, turn % PLAIN != 0, 1.0 if turn % PLAIN == 0 else 3.0)
    assert pace.cost(6, True) / pace.cost(1, False) == pytest.approx(3.0, rel=0.05)
    assert pace.cost.level * pace.cost(1, False) == pytest.approx(1.0, rel=0.05)


class Beams:
    """A search that finds the same beams for each row: (token, beam of the step before, chance), step by step."""

    def __init__(self, *steps):
        self.length, self.width = len(steps), len(steps[0])
        columns = list(zip(*(zip(*step, strict=True) for step in steps), strict=True))
        self.guesses, self.beams = (np.array(column, np.int64) for column in columns[:2])
        scores = np.log(np.array(columns[2]))
        for step in range(1, self.length):
            scores[step] += scores[step - 1][self.beams[step]]
        self.scores = scores.astype(np.float32)

    def __call__(self, states, tokens):
        return tuple(np.repeat(a[None], len(tokens), 0) for a in (self.guesses, self.beams, self.scores))


@compiler
def test_guesses_of_both_are_one_tree():
    """The drafter's likeliest branch comes first. A guess that both make stands there once, in a class of its own; the
    other's go on from where they part."""
    table = RowTable(2, 64, hidden=4)
    search = Beams([(5, 0, 0.6), (6, 0, 0.15)], [(8, 1, 0.99), (7, 0, 0.05)])
    tokens, parents, kinds = [6, 8, 5, 7], [-1, 0, -1, 2], [1, 9 + 8, 4, 9]  # classes: nine of each step, by the chance
    both = Both(NgramProposer(table, 20, 64), RedrafterProposer(table, search))
    n, d = len(both._ngrams.expected), len(both._drafter.expected)
    drafted, agreed, against = n, n + d, n + 5 * d
    assert len(both.expected) == against + n
    written(table, 0, 3, 4, 6, 8, 9, 3, 4)
    ((own, _, alone),) = guesses_of(both, [0], [3])
    assert own == [6, 8, 9]
    both.expected[alone] = 0.3, 0.8, 0.5  # the second and the last of four levels
    ((got, before, classes),) = guesses_of(both, [0], [3], level=2)
    assert (got, before) == ([*tokens, 9], [*parents, 1])
    assert classes[:2] == [agreed + 4 * kinds[0] + 1, agreed + 4 * kinds[1] + 3]
    assert classes[2:] == [drafted + kinds[2], drafted + kinds[3], alone[2]]  # it did not look as far as the last
    written(table, 0, 3, 4, 7, 3, 4)
    both.begin(0)
    ((_, _, alone),) = guesses_of(both, [0], [1])
    ((got, before, classes),) = guesses_of(both, [0], [1], level=2)  # one token alone may be guessed
    assert (got, before) == ([5, 6, 7], [-1, -1, -1])
    assert classes[0] == drafted + kinds[2]
    assert classes[2] == against + alone[0]
    written(table, 1, *[11, 12, 13] * 7, 11, 12)  # many tokens match: nobody else is asked
    assert guesses_of(both, [1], [2], level=2)[0][0] == [13, 11]

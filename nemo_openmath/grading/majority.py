"""Majority by meaning: the one way in which answers are grouped, for labels, maj@k, early agreement and selection.

``compare`` is no equivalence: 50% equals 0.5 and 50, which differ; 5 equals 5 cm and 5 m. The groups are one. They
are a function of the votes as a multiset: no order of samples and no order of comparing changes them.

1. Spellings that are plain numbers of one value are one spelling. Of all others each pair is compared, in the order
   of rule 5, whichever came first.
2. A spelling is *ambiguous* where it equals two others that are certainly different. All others are *sure*.
3. Sure spellings that are equal, directly or by a chain of equal ones, are one group. A group holds no two spellings
   that are certainly different: where a chain would join such, the pairs are joined in the order of rule 5 as far as
   that holds.
4. Then each ambiguous spelling (with those that equal it) joins, of the groups that it equals and that hold nothing
   certainly different from it, the one with the most sure votes; of equally many the first by rule 5. If there is none
   it stands alone. ``Majority.ambiguous`` and ``Majority.reason`` name it.
5. Ties: more votes first, then the shorter text, then the order of code points. This holds for the representative of
   a group, for groups of the same size (``tie`` says so) and for the order of joining.

Only Verdict.EQUAL joins; unknown and timeout neither join nor keep apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nemo_openmath.core.grader import Grade, Majority, Verdict
from nemo_openmath.grading import plain
from nemo_openmath.grading.compare import compare as compare_answers

MAX_COMPARISONS = 4096  # all pairs of 91 spellings


def majority(
    answers: Sequence[str | None],
    *,
    compare: Callable[[str, str], Grade] = compare_answers,
    max_comparisons: int = MAX_COMPARISONS,
    min_share: float = 0.0,
    by_value: bool = True,
) -> Majority:
    """Group ``answers`` by the rules above and return the vote. See :class:`Ballot` for the settings, and
    ``GradingPool.majority`` for comparing in worker processes."""
    ballot = Ballot(answers, by_value=by_value, max_comparisons=max_comparisons)
    return ballot.count((compare(a, b) for a, b in ballot.pairs), min_share=min_share)


@dataclass(slots=True)
class _Spelling:
    """Texts that are one number, or one text."""

    texts: list[str]
    votes: int
    value: tuple[int, int] | None

    @property
    def order(self) -> tuple[int, int, str]:
        return (-self.votes, len(self.texts[0]), self.texts[0])


class Ballot:
    """Votes whose comparisons are still to be made: ``pairs``, in the order of which ``count`` takes the grades.

    ``by_value``: plain numbers are told apart by their values, without a comparison; False where the comparison sees
    numbers otherwise (``take_modulo``). Missing answers (None or blank) count in ``total`` and never win. Spellings
    beyond ``max_comparisons``, the rarest ones, are not compared.
    """

    def __init__(self, answers: Iterable[str | None], *, by_value: bool = True, max_comparisons: int = MAX_COMPARISONS):
        self.votes: Counter[str] = Counter()
        self.missing = 0
        for answer in answers:
            if answer and (text := answer.strip()):
                self.votes[text] += 1
            else:
                self.missing += 1
        spellings: dict[tuple[int, int] | str, _Spelling] = {}
        for text in sorted(self.votes, key=_content):
            value = plain.value(text) if by_value else None
            entry = spellings.setdefault(value or text, _Spelling([], 0, value))
            entry.texts.append(text)
            entry.votes += self.votes[text]
        self._spellings = sorted(spellings.values(), key=lambda s: s.order)
        self._edges: list[tuple[int, int]] = []
        self.complete = True
        for j, entry in enumerate(self._spellings):
            edges = [(i, j) for i in range(j) if entry.value is None or self._spellings[i].value is None]
            if len(self._edges) + len(edges) > max_comparisons:
                self.complete = False
                break
            self._edges += edges

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs to compare, each with the text first that is first by content."""
        pairs = []
        for i, j in self._edges:
            a, b = sorted((self._spellings[i].texts[0], self._spellings[j].texts[0]), key=_content)
            pairs.append((a, b))
        return pairs

    def count(self, grades: Iterable[Grade], *, min_share: float = 0.0) -> Majority:
        """Count the votes, given the grades of ``pairs``. A winner with ``count / total < min_share`` gives ``answer``
        None."""
        relation = _Relation(self._spellings)
        for (i, j), grade in zip(self._edges, grades, strict=True):
            relation.note(i, j, grade.verdict)
        groups, sure = _group(self._spellings, relation)
        total = self.missing + sum(self.votes.values())

        def size(group: list[int]) -> int:
            return sum(self._spellings[i].votes for i in group)

        def representative(group: list[int]) -> str:
            return min(
                (t for i in group for t in self._spellings[i].texts), key=lambda t: (-self.votes[t], *_content(t))
            )

        ranked = sorted(groups, key=lambda g: (-size(g), *_content(representative(g))))
        names = [representative(group) for group in ranked]
        sizes = [size(group) for group in ranked]
        place = {i: n for n, group in enumerate(ranked) for i in group}
        ambiguous: dict[str, tuple[str, ...]] = {}
        for i, spelling in enumerate(self._spellings):
            fits = {place[i]} | {place[j] for j in relation.equal[i] if i not in sure or j in sure}
            if len(fits) > 1:
                own_first = sorted(fits, key=lambda n: (n != place[i], n))
                ambiguous |= {text: tuple(names[n] for n in own_first) for text in spelling.texts}
        best = sizes[0] if sizes else 0
        enough = bool(sizes) and best >= min_share * total
        tie = sizes[1:2] == [best]
        return Majority(
            answer=names[0] if enough else None,
            count=best,
            total=total,
            groups=tuple(zip(names, sizes, strict=True)),
            tie=tie,
            missing=self.missing,
            comparisons=len(self._edges),
            complete=self.complete,
            reason=_reason(names, sizes, total, enough, tie, ambiguous),
            ambiguous=ambiguous,
            lead=_lead(self._spellings, relation, ranked, sizes, sure),
            places={text: n for i, n in place.items() for text in self._spellings[i].texts},
        )


def _content(text: str) -> tuple[int, str]:
    return len(text), text


class _Relation:
    """What is known of pairs of spellings, by their numbers."""

    def __init__(self, spellings: Sequence[_Spelling]):
        self._valued = [s.value is not None for s in spellings]
        self.equal: list[set[int]] = [set() for _ in spellings]
        self._different: list[set[int]] = [set() for _ in spellings]

    def note(self, i: int, j: int, verdict: Verdict) -> None:
        known = {Verdict.EQUAL: self.equal, Verdict.NOT_EQUAL: self._different}.get(verdict)
        if known is not None:
            known[i].add(j)
            known[j].add(i)

    def different(self, i: int, j: int) -> bool:
        """Return whether two spellings are certainly different."""
        return j in self._different[i] or (i != j and self._valued[i] and self._valued[j])

    def apart(self, a: Iterable[int], b: Sequence[int]) -> bool:
        """Return whether one of ``a`` is certainly different from one of ``b``."""
        return any(self.different(i, j) for i in a for j in b)

    def ambiguous(self, i: int) -> bool:
        """Return whether a spelling equals two that are certainly different."""
        near = sorted(self.equal[i])
        return any(self.different(a, b) for n, a in enumerate(near) for b in near[n + 1 :])

    def joined(self, members: Sequence[int]) -> list[list[int]]:
        """Return groups of ``members``, which are in order: those that are equal by a chain, none that are
        different."""
        group = {i: [i] for i in members}
        for j in members:
            for i in sorted(self.equal[j]):
                if i < j and i in group and group[i] is not group[j] and not self.apart(group[i], group[j]):
                    group[i] += group[j]
                    for moved in group[j]:
                        group[moved] = group[i]
        return list({id(group_members): group_members for group_members in group.values()}.values())


def _group(spellings: Sequence[_Spelling], relation: _Relation) -> tuple[list[list[int]], set[int]]:
    """Apply rules 2 to 4: return the groups, and which spellings are sure."""
    unsure = [i for i in range(len(spellings)) if relation.ambiguous(i)]
    sure = [i for i in range(len(spellings)) if i not in set(unsure)]
    groups = relation.joined(sure)
    votes = {id(g): sum(spellings[i].votes for i in g) for g in groups}
    homes: list[tuple[list[int], list[int] | None]] = []
    for joined in relation.joined(unsure):
        fits = [
            group
            for group in groups
            if any(relation.equal[i].intersection(group) for i in joined) and not relation.apart(joined, group)
        ]
        home = min(fits, key=lambda g: (-votes[id(g)], min(spellings[i].order for i in g)), default=None)
        homes.append((joined, home))
    alone = []
    for joined, home in homes:
        if home is None or relation.apart(joined, home):  # what joined before may be different
            alone.append(joined)
        else:
            home += joined
    return groups + alone, set(sure)


def _lead(
    spellings: Sequence[_Spelling], relation: _Relation, ranked: Sequence[list[int]], sizes: list[int], sure: set[int]
) -> tuple[int, int]:
    """Return ``Majority.lead``."""
    if not ranked:
        return 0, 0
    first = sum(spellings[i].votes for i in ranked[0] if i in sure) or sizes[0]
    rivals = ranked[1:]
    numbers = [all(spellings[i].value is not None for i in group) for group in rivals]
    second = 0
    for n, group in enumerate(rivals):
        most = sizes[n + 1]
        for m, other in enumerate(rivals):
            if m != n and not (numbers[n] and numbers[m]) and not relation.apart(group, other):
                most += sizes[m + 1]  # perhaps the same
        turned = (i for i in ranked[0] if i not in sure and relation.equal[i].intersection(group))
        second = max(second, most + sum(spellings[i].votes for i in turned))
    return first, second


def _reason(
    names: list[str], sizes: list[int], total: int, enough: bool, tie: bool, ambiguous: dict[str, tuple[str, ...]]
) -> str:
    if not names:
        return "nobody answered"
    reason = f"{sizes[0]} of {total} votes" + ("" if enough else ", fewer than wanted")
    if tie:
        tied = sizes.count(sizes[0]) - 1
        reason += f", as many as {tied} other answer{'s' * (tied > 1)}; the shorter one is taken"
    for text, fits in sorted(ambiguous.items()):
        others = " and ".join(map(repr, fits[1:]))
        reason += f"; {text!r} is counted as {fits[0]!r} and also equals {others}"
    return reason

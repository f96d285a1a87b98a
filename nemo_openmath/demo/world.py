"""A tiny but honest mathematical world: problems with exact answers on which running code truly helps.

Every problem belongs to one of three pools by a hash of its kind and parameters, whatever its wording: ``benchmark``
(held out), ``train`` (the forum is made of it) and ``base`` (the base checkpoint's pre-training text). So the pools
are disjoint by construction, and no seed or count can mix them.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from functools import lru_cache

from nemo_openmath.demo.kinds import KINDS, Params, ProblemKind

LEVELS = (1, 2, 3)
POOLS = ("benchmark", "train", "base")
_SHARES = {"benchmark": 15, "train": 40, "base": 45}  # percent of all problems


@dataclass(frozen=True, slots=True)
class Item:
    """A problem in one of its wordings."""

    kind: str
    params: Params
    statement: str
    answer: str
    """Decimal digits."""

    @property
    def key(self) -> str:
        """What two wordings of one problem have in common."""
        return f"{self.kind}:{','.join(map(str, self.params))}"

    @property
    def pool(self) -> str:
        """The pool that the problem belongs to, of :data:`POOLS`."""
        return pool_of(self.kind, self.params)

    def fill(self, template: str, **more: object) -> str:
        """Return a template of the item's kind with the item's parameters."""
        return KINDS[self.kind].fill(template, self.params, **more)

    @property
    def program(self) -> str:
        """Return a short program that prints the answer."""
        return self.fill(KINDS[self.kind].program)

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the other way to the answer: programs written one after the other. ``{unknown}`` is what the one
        before printed."""
        return tuple(self.fill(stage) for stage in KINDS[self.kind].stages)

    @property
    def wrong_programs(self) -> tuple[str, ...]:
        """Return plausible programs that (nearly always) print something else."""
        return tuple(self.fill(wrong) for wrong in KINDS[self.kind].wrong)

    @property
    def quantity(self) -> str:
        """What is asked, as a noun phrase."""
        return self.fill(KINDS[self.kind].quantity)

    @property
    def steps(self) -> str:
        """Return a solution by hand; its last number is the answer."""
        return KINDS[self.kind].steps(*self.params)

    def reworded(self) -> Item:
        """Return the same problem in its next wording."""
        wordings = [self.fill(p) for p in KINDS[self.kind].phrasings]
        at = wordings.index(self.statement) if self.statement in wordings else -1
        return Item(self.kind, self.params, wordings[(at + 1) % len(wordings)], self.answer)


def pool_of(kind: str, params: Params) -> str:
    """Return the pool of a problem. A hash of its kind and parameters decides."""
    digest = hashlib.sha256(f"{kind}:{','.join(map(str, params))}".encode()).digest()
    place = int.from_bytes(digest[:4], "big") % 100
    for pool, share in _SHARES.items():
        if place < share:
            return pool
        place -= share
    raise AssertionError("the shares add up to 100")


@lru_cache(maxsize=65536)
def answer_of(kind: str, params: Params) -> str:
    """Return the exact answer."""
    return str(KINDS[kind].answer(*params))


def make_item(kind: str, params: Params, phrasing: int = 0) -> Item:
    """Return the problem in the given wording."""
    chosen = KINDS[kind]
    return Item(kind, params, chosen.fill(chosen.phrasings[phrasing], params), answer_of(kind, params))


def sample(
    rng: random.Random, level: int | None = None, *, kind: str | None = None, pool: str | None = None, tries: int = 2000
) -> Item:
    """Draw a problem; without a level or kind, any. Raises ValueError when the pool seems to hold none such."""
    for _ in range(tries):
        chosen = KINDS[kind or rng.choice(tuple(KINDS))]
        params = chosen.draw(rng, level or rng.choice(LEVELS))
        if pool is None or pool_of(chosen.name, params) == pool:
            return make_item(chosen.name, params, rng.randrange(len(chosen.phrasings)))
    raise ValueError(f"no problem of kind {kind}, level {level}, pool {pool} in {tries} tries")


def make_problems(seed: int, n: int, *, pool: str, exclude: frozenset[str] = frozenset()) -> list[Item]:
    """Return n different problems of a pool, kinds and levels in turn.

    ``exclude``: keys that must not occur. Raises ValueError where the pool is too small for n.
    """
    rng = random.Random(f"{pool}:{seed}")
    items: dict[str, Item] = {}
    slots = [(kind, level) for level in LEVELS for kind in KINDS]
    turn = misses = 0
    while len(items) < n:
        kind, level = slots[turn % len(slots)]
        turn += 1
        item = sample(rng, level, kind=kind, pool=pool)
        if item.key in items or item.key in exclude:
            misses += 1  # small slots (easy problems of one parameter) run dry first; the others go on
            if misses > 10_000:
                raise ValueError(f"the pool {pool} holds fewer than {n} problems")
            continue
        items[item.key] = item
        misses = 0
    return list(items.values())


def make_benchmark(seed: int, n: int) -> list[Item]:
    """Return n different held-out problems with exact answers."""
    return make_problems(seed, n, pool="benchmark")


def parse(statement: str) -> Item | None:
    """Return the problem that a statement poses, or None: the exact inverse of every wording."""
    match = _STATEMENT.fullmatch(statement.strip())
    return _item_of(match) if match else None


def find(text: str) -> list[tuple[int, int, Item]]:
    """Return all statements within a text, in order: (start, end, problem)."""
    return [(m.start(), m.end(), _item_of(m)) for m in _STATEMENT.finditer(text)]


def pattern(template: str, kind: ProblemKind, prefix: str = "") -> str:
    """Return the regular expression of a template. Its parameters are named groups, with ``prefix`` before each
    name."""
    text = re.escape(template)
    seen: set[str] = set()
    for name in kind.names:
        place = re.escape(f"{{{name}}}")
        while place in text:
            group = f"(?P={prefix}{name})" if name in seen else f"(?P<{prefix}{name}>\\d+)"
            text = text.replace(place, group, 1)
            seen.add(name)
    return text


def _statement_pattern() -> re.Pattern[str]:
    parts = []
    for at, kind in enumerate(KINDS.values()):
        for phrasing, template in enumerate(kind.phrasings):
            parts.append(f"(?P<w{at}_{phrasing}>{pattern(template, kind, f'w{at}_{phrasing}_')})")
    return re.compile("|".join(parts))


_STATEMENT = _statement_pattern()


def _item_of(found: re.Match[str]) -> Item:
    group = next(name for name in _WORDINGS if found[name] is not None)
    kind = tuple(KINDS.values())[int(group[1:].split("_")[0])]
    params = tuple(int(found[f"{group}_{name}"]) for name in kind.names)
    return Item(kind.name, params, found[group], answer_of(kind.name, params))


_WORDINGS = [f"w{at}_{i}" for at, kind in enumerate(KINDS.values()) for i in range(len(kind.phrasings))]

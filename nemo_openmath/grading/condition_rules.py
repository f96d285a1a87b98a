"""Equations, inequalities and residue classes."""

from __future__ import annotations

import re

from nemo_openmath.core.grader import Grade, Verdict, equal, not_equal, unknown
from nemo_openmath.grading.equations import compare_relations, pairs, proportional, solutions
from nemo_openmath.grading.forms import (
    INFINITY,
    MINUS_INFINITY,
    ZERO,
    Collection,
    Congruence,
    Form,
    Region,
    Relation,
    Scalar,
)
from nemo_openmath.grading.nodes import Node, put, symbols
from nemo_openmath.grading.rules import Rules
from nemo_openmath.grading.scalars import same_number

_LETTER = re.compile(r"[A-Za-z](?:_\w+)?'*|[a-z]{2,}(?:_\w+)?'*")  # a name that stands for a number: y, x_1, theta
_SUMMANDS = frozenset("abcdkmnpqrstABCDMNPQRST")


class ConditionRules(Rules):
    """Rules for equations, inequalities and residue classes."""

    def _relations(self, a: Form, b: Form) -> Grade:
        """Compare conditions as such. An equation in one unknown equals the list of its roots."""
        for x, y in ((a, b), (b, a)):
            if isinstance(x, Relation) and isinstance(y, Scalar) and (total := _total(x)) is not None and not y.name:
                return self.values(total, y)
            if isinstance(x, Relation) and (grade := self._roots(x, y)) is not None:
                return grade
        first, second = _condition(a, b), _condition(b, a)
        if first is None or second is None:
            return unknown("a relation against another kind of answer")
        return compare_relations(first, second, self.log_base)

    def _roots(self, equation: Relation, values: Form) -> Grade | None:
        """Compare an equation in one unknown with the values that it may have; None where the pair is another."""
        unknowns = symbols(("rel", equation.nodes))
        items = values.items if isinstance(values, Collection) else (values,)
        scalars = [i for i in items if isinstance(i, Scalar) and i.unit is None and not symbols(i.node)]
        if equation.operators != ("=",) or len(unknowns) != 1 or len(scalars) != len(items) or not items:
            return None
        (name,) = unknowns
        if (valued := getattr(values, "name", None)) and valued != name:
            return unknown(f"an equation in {name} against a value of {valued}")
        left, right = equation.nodes
        for i in scalars:
            sides = (put(side, name, i.node) for side in (left, right))
            if self.nodes(*sides).verdict is Verdict.NOT_EQUAL:
                return not_equal("a value that does not solve the equation")
        function: Node = ("add", (left, ("neg", right)))
        factors = tuple(("add", (("sym", name), ("neg", i.node))) for i in scalars)
        roots: Node = factors[0] if len(factors) == 1 else ("mul", factors)
        if proportional(function, roots, self.log_base) is not None:
            return equal("the equation and its roots")
        for solution in solutions(function, name, self.log_base):
            solved = same_number(put(function, name, solution), ZERO, {}, self.log_base, real=True)
            is_listed = any(self.nodes(solution, i.node).verdict is not Verdict.NOT_EQUAL for i in scalars)
            if solved.is_equal and not is_listed and name in "xyzt":
                return not_equal("a solution is missing")
        return unknown("an equation that is no multiple of that of the values")

    def _congruences(self, a: Congruence, b: Congruence) -> Grade:
        """Compare two residue classes."""
        match a.modulus, b.modulus, a.residue, b.residue:
            case ("num", int(m), _), ("num", int(n), _), x, y:
                if m != n or m == 0:
                    return not_equal("different moduli")
                values = [_integer(x), _integer(y)]
                if values[0] is None or values[1] is None:
                    return unknown("residues")
                return equal("congruent") if (values[0] - values[1]) % m == 0 else not_equal("not congruent")
        return unknown("moduli")


def _condition(f: Form, other: Form) -> tuple[tuple[str, Node, Node], ...] | None:
    """Return a relation, a named value or a half line as a chain of pairs of sides; None for another answer."""
    match f:
        case Relation(operators, nodes):
            return pairs(operators, nodes)
        case Scalar(node, None, str(name)) if _LETTER.fullmatch(name):
            return (("=", ("sym", name), node),)
        case Region(intervals=(only,)):
            names = symbols(("rel", other.nodes)) if isinstance(other, Relation) else set()
            letter = f.name or (next(iter(names)) if len(names) == 1 else None)
            if letter is None or (only.low == MINUS_INFINITY) == (only.high == INFINITY):
                return None
            if only.low == MINUS_INFINITY:
                return (("<=" if only.high_closed else "<", ("sym", letter), only.high),)
            return (("<=" if only.low_closed else "<", only.low, ("sym", letter)),)
    return None


def _total(f: Relation) -> Scalar | None:
    """Return 70 of "m + n = 70", the usual last line of a contest answer: a sum of letters and a positive whole number.
    None for other equations."""
    if f.operators != ("=",) or f.nodes[0][0] != "add" or (_integer(f.nodes[1]) or 0) <= 0:
        return None
    terms = f.nodes[0][1]
    names = {term[1] for term in terms if term[0] == "sym"}
    return Scalar(f.nodes[1]) if len(names) == len(terms) and names <= _SUMMANDS else None


def _integer(node: Node) -> int | None:
    match node:
        case ("num", int(value), 0):
            return value
        case ("neg", ("num", int(value), 0)):
            return -value
    return None

r"""Tokens -> expression tree, by recursive descent with a bound on depth; linear in the number of tokens.

A node is a tuple whose first entry names it:

    ("num", value, digits)      int or Fraction; digits of a written decimal, 0 of an exact number
    ("sym", name)  ("const", "pi" | "e" | "i" | "oo")
    ("add", nodes)  ("mul", nodes)  ("neg", a)  ("div", a, b)  ("pow", a, b)  ("root", a, n)  ("pm", a, b, sign)
    ("fn", name, argument, base or power-of-function)  ("fact", a, step)  ("binom", n, k)
    ("seq", open, close, nodes)  ("list", nodes, "," | "and" | "or")  ("ratio", nodes)  ("matrix", rows)
    ("rel", operators, nodes)  ("in", a, set)  ("builder", name, condition)  ("union", nodes)  ("setminus", a, b)
    ("empty",)  ("unit", a, dimension, factor)  ("percent", a)  ("mod", a, modulus)
    ("call", function, argument)  f(3) of a letter f: a value that is not known here
    ("clock", parts, half)        12:30 or 4:00 PM; half is "a", "p" or ""

Where custom leaves two readings of a product behind a slash or a function (1/2x, \sin x/2), ``Parser.ambiguous`` is
set and ``tight`` chooses the second one: the product first.
"""

from __future__ import annotations

from typing import Any

from nemo_openmath.grading.factors import FactorParser, times
from nemo_openmath.grading.lexer import NotMath
from nemo_openmath.grading.nodes import DOTS, Node
from nemo_openmath.grading.quantities import with_units

_RELATIONS = frozenset({"=", "<", ">", "<=", ">=", "!=", "approx", "==", "equiv"})


class Parser(FactorParser):
    """Parses one answer: lists of relations of sums of products."""

    def parse(self) -> Node:
        """Return the node of the whole text. Raises NotMath where it is no expression of the grammar."""
        node = self._list()
        if self.position < len(self.tokens):
            raise NotMath(f"unexpected {self.peek()[1]!r}")
        return node

    def _list(self) -> Node:
        items = [self._item()]
        connective = ","
        while (op := self.op()) in (",", ";", "and", "or"):
            self.position += 1
            if op in (",", ";") and self.op() in ("and", "or"):  # "1, 2, and 3"
                op = self.op()
                self.position += 1
            if op in ("and", "or"):
                connective = op
            items.append(self._item())
        return items[0] if len(items) == 1 else ("list", tuple(items), connective)

    def _item(self) -> Node:
        if self.take("dots"):
            return DOTS
        self._enter()
        first = self._set_expression()
        operators: list[str] = []
        nodes = [first]
        while (op := self.op()) in _RELATIONS or op == "in":
            self.position += 1
            if op == "in":
                return self._leave(("in", nodes[-1], self._set_expression()))
            operators.append("=" if op == "==" else str(op))
            nodes.append(self._set_expression())
        node: Node = ("rel", tuple(operators), tuple(nodes)) if operators else first
        if self.op() == "(" and self.peek(1) == ("op", "mod"):
            self.position += 2
            node = ("mod", node, self._additive())
            self.expect(")")
        elif self.take("mod"):
            node = ("mod", node, self._additive())
        return self._leave(node)

    def _set_expression(self) -> Node:
        node = self._ratio()
        while (op := self.op()) in ("cup", "setminus"):
            self.position += 1
            right = self._ratio()
            if op == "cup":
                node = ("union", (*node[1], right)) if node[0] == "union" else ("union", (node, right))
            else:
                node = ("setminus", node, right)
        return node

    def _ratio(self) -> Node:
        parts = [self._additive()]
        while self.take(":"):
            parts.append(self._additive())
        return parts[0] if len(parts) == 1 else ("ratio", tuple(parts))

    def _additive(self) -> Node:
        self._enter()
        terms: list[Node] = []
        op = self.op()
        if op in ("pm", "mp"):
            terms = [("num", 0, 0)]
        else:
            terms = [self._term()]
        while (op := self.op()) in ("+", "-", "pm", "mp"):
            self.position += 1
            term = self._term()
            if op == "+":
                terms.append(term)
            elif op == "-":
                terms.append(("neg", term))
            else:
                left = terms[0] if len(terms) == 1 else ("add", tuple(terms))
                terms = [("pm", left, term, 1 if op == "pm" else -1)]
        return self._leave(terms[0] if len(terms) == 1 else ("add", tuple(terms)))

    def _term(self) -> Node:
        negative = False
        while (op := self.op()) in ("+", "-"):
            negative ^= op == "-"
            self.position += 1
        node = self._product()
        while (op := self.op()) in ("*", "/", "over", "choose"):
            self.position += 1
            if op == "over":
                node = ("div", node, self._product())
            elif op == "choose":
                node = ("binom", node, self._product())
            elif op == "*":
                node = times(node, self._signed(self._product))
            else:
                node = self._divide(node)
        node = with_units(self, node)
        return ("neg", node) if negative else node

    def _signed(self, parse: Any) -> Node:
        negative = False
        while (op := self.op()) in ("+", "-"):
            negative ^= op == "-"
            self.position += 1
        node: Node = parse()
        return ("neg", node) if negative else node

    def _divide(self, numerator: Node) -> Node:
        """Parse what follows a slash: one factor, then more factors of the whole ("tight": of the denominator)."""
        if self.tight:
            return ("div", numerator, self._signed(self._product))
        denominator = self._signed(self._factor)
        node: Node = ("div", numerator, denominator)
        while self._starts_factor():
            self.ambiguous = True
            node = times(node, self._factor())
        return node

    def _product(self) -> Node:
        """Parse factors side by side."""
        node = self._factor()
        while self._starts_factor():
            braced = self.op() == "{"
            factor = self._factor()
            if braced and node[0] == factor[0] == "num":
                raise NotMath("numbers side by side")  # TeX prints {2}{3} as 23
            if braced and node[0] == "num" and factor[0] == "div" and factor[1][0] == factor[2][0] == "num":
                raise NotMath("a mixed number or a product")  # 2{\frac{1}{3}}
            node = times(node, factor)
        return node

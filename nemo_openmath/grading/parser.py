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

from fractions import Fraction
from typing import Any

from nemo_openmath.grading.cursor import Cursor
from nemo_openmath.grading.lexer import NotMath, Token
from nemo_openmath.grading.nodes import DOTS, Node
from nemo_openmath.grading.quantities import with_units
from nemo_openmath.grading.subscripts import counts, in_base, plain
from nemo_openmath.grading.units import SCALES, UNITS

MAX_DEPTH = 120
_RELATIONS = frozenset({"=", "<", ">", "<=", ">=", "!=", "approx", "==", "equiv"})
_CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "set(": (")set",), "<(": (")>",), "{": ("}",)}
_ONE: Node = ("num", 1, 0)
_FUNCTION_NAMES = frozenset({"f", "g", "F", "G", "phi", "psi", "Gamma", "zeta"})  # f(x+1) is no product
_TEMPERATURES = {"C": "degC", "F": "degF"}
_CURRENCY = {"$": "USD", r"\$": "USD", "€": "€", "£": "£", "¥": "¥", "₹": "₹"}


class Parser(Cursor):
    """Parses one answer. ``parse()`` returns the node of the whole text or raises NotMath."""

    def __init__(self, tokens: list[Token], *, tight: bool = False):
        super().__init__(tokens)
        self.depth = 0
        self.bars = 0  # open absolute values: their closing bar must not open another
        self.tight = tight
        self.ambiguous = False

    def parse(self) -> Node:
        node = self._list()
        if self.position < len(self.tokens):
            raise NotMath(f"unexpected {self.peek()[1]!r}")
        return node

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotMath("nested too deeply")

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

    def _leave(self, node: Node) -> Node:
        self.depth -= 1
        return node

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
                node = _times(node, self._signed(self._product))
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
        """What follows a slash: one factor, then more factors of the whole ("tight": of the denominator)."""
        if self.tight:
            return ("div", numerator, self._signed(self._product))
        denominator = self._signed(self._factor)
        node: Node = ("div", numerator, denominator)
        while self._starts_factor():
            self.ambiguous = True
            node = _times(node, self._factor())
        return node

    def _product(self) -> Node:
        """Factors side by side."""
        node = self._factor()
        while self._starts_factor():
            braced = self.op() == "{"
            factor = self._factor()
            if braced and node[0] == factor[0] == "num":
                raise NotMath("numbers side by side")  # TeX prints {2}{3} as 23
            if braced and node[0] == "num" and factor[0] == "div" and factor[1][0] == factor[2][0] == "num":
                raise NotMath("a mixed number or a product")  # 2{\frac{1}{3}}
            node = _times(node, factor)
        return node

    def _mixed(self, node: Node) -> Node | None:
        r"""A whole number before a proper fraction of whole numbers, 3\frac{1}{2}, is a sum."""
        if node[0] != "num" or not isinstance(node[1], int) or self.peek() != ("cmd", "frac"):
            return None
        start = self.position
        fraction = self._primary()
        match fraction:
            case ("div", ("num", int(a), 0), ("num", int(b), 0)) if 0 < a < b and self.tokens[start - 1][0] == "num":
                return ("num", node[1] + Fraction(a, b), 0)
        self.position = start
        return None

    def _starts_factor(self) -> bool:
        kind, value = self.peek()
        if kind in ("sym", "const", "cmd", "fn", "begin"):
            return True
        if kind == "num":
            previous = self.tokens[self.position - 1]
            return previous[0] != "num"  # 2 3 is no product
        if kind == "op":
            if value == "(" and self.peek(1) == ("op", "mod"):
                return False
            return (
                value in ("(", "{", "floor(", "ceil(")
                or (value == "[" and self.peek(-1)[0] != "op")
                or (value == "|" and not self.bars)
            )
        return False

    def _factor(self) -> Node:
        node = self._primary()
        node = self._mixed(node) or node
        while True:
            op = self.op()
            if op in ("^", "**"):
                self.position += 1
                if self.take("°") or self._braced("°"):
                    node = self._degrees(node)
                elif (self.take("'") or self._braced("'")) and node[0] == "sym":
                    node = ("sym", node[1] + "'")
                else:
                    node = ("pow", node, self._exponent())
            elif op == "!":
                self.position += 1
                node = ("fact", node, 1)
            elif op == "!!":
                self.position += 1
                node = ("fact", node, 2)
            elif op == "%":
                self.position += 1
                node = ("percent", node)
            elif op == "°":
                self.position += 1
                node = self._degrees(node)
            elif op == "_" and node[0] == "num":
                self.position += 1
                node = in_base(node, self._group_or_token())
            elif op == "'" and node[0] == "sym":
                self.position += 1
                node = ("sym", node[1] + "'")
            elif op == "(" and self._is_call(node):
                self.position += 1
                node = ("call", node, self._bracket("("))
            else:
                return node

    def _is_call(self, node: Node) -> bool:
        r"""Whether a bracket behind a letter holds the argument of a function: \varphi(10), f(x+1), a(n); x(x+1) is a
        product."""
        letter = node[1] if node[0] == "pow" else node  # f^{-1}(2), f^2(x)
        if letter[0] != "sym":
            return False
        if letter[1].rstrip("'") in _FUNCTION_NAMES:
            return self.peek(1) != ("op", "mod")
        ahead = 2 if self.op(1) in ("+", "-") else 1
        is_simple = self.peek(ahead)[0] in ("num", "sym", "const") and self.op(ahead + 1) == ")"
        return is_simple and node[0] == "sym"

    def _degrees(self, node: Node) -> Node:
        kind, name = self.peek()
        if kind == "sym" and name in _TEMPERATURES and self.op(1) not in ("(", "^", "_"):
            self.position += 1
            return ("unit", node, ((_TEMPERATURES[name], 1),), Fraction(1))
        return ("unit", node, (("deg", 1),), Fraction(1))

    def _braced(self, op: str) -> bool:
        if self.op() == "{" and self.peek(1) == ("op", op) and self.peek(2) == ("op", "}"):
            self.position += 3
            return True
        return False

    def _exponent(self) -> Node:
        self._enter()
        negative = False
        while self.op() in ("+", "-"):
            negative ^= self.op() == "-"
            self.position += 1
        node = self._primary()
        while self.take("!"):
            node = ("fact", node, 1)
        if self.op() in ("^", "**"):  # right to left: 2^3^2 = 2^9
            self.position += 1
            node = ("pow", node, self._exponent())
        return self._leave(("neg", node) if negative else node)

    def _group_or_token(self) -> Node:
        r"""A LaTeX argument: a braced group or one token (\frac12 splits the number)."""
        if self.take("{"):
            self._enter()
            node = self._list()
            self.expect("}")
            return self._leave(node)
        kind, value = self.peek()
        if kind == "num" and isinstance(value[0], int) and value[0] > 9 and not value[1]:
            digits = str(value[0])
            self.tokens[self.position] = ("num", (int(digits[1:]), 0))
            if digits[1] == "0" and len(digits) > 2:
                raise NotMath("unbraced argument")
            return ("num", int(digits[0]), 0)
        return self._primary()

    def _primary(self) -> Node:
        self._enter()
        node = self._primary_inner()
        return self._leave(node)

    def _primary_inner(self) -> Node:
        kind, value = self.peek()
        self.position += 1
        if kind == "num":
            return ("num", *value)
        if kind == "const":
            return ("const", value)
        if kind == "sym":
            return self._symbol(value)
        if kind == "fn":
            return self._function(value)
        if kind == "clock":
            return ("clock", *value)
        if kind == "cmd":
            return self._command(value)
        if kind == "begin":
            return self._matrix(value)
        if kind == "op":
            if value in _CLOSERS:
                return self._bracket(value)
            if value == "|":
                self.bars += 1
                node = self._additive()
                self.expect("|")
                self.bars -= 1
                return ("fn", "det" if node[0] == "matrix" else "abs", node, None)
            if value in ("floor(", "ceil("):
                bars, self.bars = self.bars, 0
                node = self._additive()
                self.bars = bars
                self.expect(")" + value[:-1])
                return ("fn", value[:-1], node, None)
            if value in _CURRENCY:
                return self._money(_CURRENCY[value])
        raise NotMath(f"unexpected {value!r}")

    def _money(self, word: str) -> Node:
        node = self._factor()
        base, factor, power = UNITS[word]
        while self.peek()[0] == "word" and self.peek()[1] in SCALES:
            node = _times(node, ("num", SCALES[self.peek()[1]], 0))
            self.position += 1
        return ("unit", node, ((base, power),), factor)

    def _symbol(self, name: str) -> Node:
        if self.op() == "_":
            self.position += 1
            sub = self._group_or_token()
            if name in ("C", "A", "P") and self.op() == "^" and counts(sub):
                self.position += 1
                k = self._exponent()
                falling: Node = ("div", ("fact", sub, 1), ("fact", ("add", (sub, ("neg", k))), 1))
                return ("binom", sub, k) if name == "C" else falling
            name += "_" + plain(sub)
        return ("sym", name)

    def _bracket(self, opening: str) -> Node:
        bars, self.bars = self.bars, 0
        closers = _CLOSERS[opening]
        if self.op() in closers:
            closing = str(self.op())
            self.position += 1
            self.bars = bars
            if opening in ("set(", "{"):
                return ("empty",)
            raise NotMath("empty brackets")
        name = self._builder() if opening == "set(" else None
        node = self._list()
        if name is not None:
            self.expect(")set")
            self.bars = bars
            return ("builder", name, node)
        closing = self.op() or ""
        if closing not in closers:
            raise NotMath("brackets do not match")
        self.position += 1
        self.bars = bars
        if node[0] == "list":
            return ("seq", "set(" if opening == "{" else opening, ")set" if opening == "{" else closing, node[1])
        if opening == "set(":
            return ("seq", opening, closing, (node,))
        if (opening, closing) in (("(", "]"), ("[", ")")):
            raise NotMath("brackets do not match")
        return node

    def _builder(self) -> str | None:
        r"""The name before the bar or colon of \{x : ...\} or \{x \in \mathbb{R} | ...\}, None in other sets."""
        kind, name = self.peek()
        ahead = 1
        if self.peek(1) == ("op", "in") and self.peek(2) == ("cmd", "mathbb") and self.peek(3) == ("op", "{"):
            if self.peek(4) != ("sym", "R"):
                return None
            ahead = 6
        if kind != "sym" or self.op(ahead) not in (":", "|"):
            return None
        self.position += ahead + 1
        return str(name)

    def _function(self, name: str) -> Node:
        base: Node | None = None
        power: Node | None = None
        while self.op() in ("_", "^"):
            which = self.op()
            self.position += 1
            if which == "_":
                base = self._group_or_token()
            else:
                power = self._exponent()
        in_brackets = self.op() in ("(", "[", "|")
        argument = self._argument()
        if in_brackets and self.op() == "^" and power is None and name in ("ln", "log", "lg"):
            self.ambiguous = True  # \ln (x-1)^2
            if self.tight:
                self.position += 1
                argument = ("pow", argument, self._exponent())
        if name in ("min", "max") and argument[0] not in ("seq", "list"):
            raise NotMath("the least or greatest of one")
        if power == ("neg", _ONE):
            if name not in ("sin", "cos", "tan"):
                raise NotMath("inverse of a function")
            return ("fn", "arc" + name, argument, None)
        node: Node = ("fn", name, argument, base)
        return node if power is None else ("pow", node, power)

    def _argument(self) -> Node:
        """What a function applies to: brackets, or the factors up to a sign, a slash or the next function."""
        if self.op() in ("(", "[", "{", "|"):
            return self._primary()
        negative = self.op() == "-"
        if negative:
            self.position += 1
        node = self._factor()
        while self._starts_factor() and self.peek()[0] != "fn" and self.op() != "(":
            node = _times(node, self._factor())
        if self.op() == "/":
            self.ambiguous = True
            if self.tight:
                self.position += 1
                node = ("div", node, self._factor())
        return ("neg", node) if negative else node

    def _command(self, name: str) -> Node:
        if name == "frac":
            top = self._group_or_token()
            return ("div", top, self._group_or_token())
        if name == "binom":
            top = self._group_or_token()
            return ("binom", top, self._group_or_token())
        if name == "sqrt":
            index: Node = ("num", 2, 0)
            if self.take("["):
                index = self._additive()
                self.expect("]")
            if self.op() == "(":
                return ("root", self._primary(), index)
            if self.peek()[0] == "num":  # √12, sqrt 12: the whole number, not its first digit
                self.position += 1
                return ("root", ("num", *self.tokens[self.position - 1][1]), index)
            return ("root", self._group_or_token(), index)
        if name in ("emptyset", "varnothing"):
            return ("empty",)
        if name == "mathbb":
            return ("sym", "mathbb_" + plain(self._group_or_token()))
        if name in ("overline", "bar", "vec", "hat"):
            return ("sym", f"{name}_" + plain(self._group_or_token()))
        raise NotMath(f"{name} is not evaluated here")

    def _matrix(self, kind: str) -> Node:
        if kind not in ("pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "smallmatrix", "array"):
            raise NotMath(f"environment {kind}")
        if kind == "array":
            self.expect("{")
            while not self.take("}"):  # columns; a line between them makes an augmented matrix
                if self.peek()[0] not in ("sym", "word", "const"):
                    raise NotMath("columns of an array")
                self.position += 1
        rows: list[tuple[Node, ...]] = []
        row: list[Node] = []
        while self.peek()[0] != "end":
            row.append(self._additive())
            if not self.take("&"):
                rows.append(tuple(row))
                row = []
                if not self.take("\\\\"):
                    break
        if self.peek()[0] != "end" or row or len({len(r) for r in rows}) != 1:
            raise NotMath("ragged matrix")
        self.position += 1
        node: Node = ("matrix", tuple(rows))
        return ("fn", "det", node, None) if kind == "vmatrix" else node


def _times(a: Node, b: Node) -> Node:
    return ("mul", (*a[1], b)) if a[0] == "mul" else ("mul", (a, b))

r"""The factors of a product: numbers, symbols, functions, brackets and commands, with what stands behind them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction

from nemo_openmath.grading.cursor import Cursor
from nemo_openmath.grading.lexer import NotMath, Token
from nemo_openmath.grading.nodes import Node
from nemo_openmath.grading.subscripts import counts, in_base, plain
from nemo_openmath.grading.units import SCALES, UNITS

MAX_DEPTH = 120
_CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "set(": (")set",), "<(": (")>",), "{": ("}",)}
_ONE: Node = ("num", 1, 0)
_FUNCTION_NAMES = frozenset({"f", "g", "F", "G", "phi", "psi", "Gamma", "zeta"})  # f(x+1) is no product
_TEMPERATURES = {"C": "degC", "F": "degF"}
_CURRENCY = {"$": "USD", r"\$": "USD", "€": "€", "£": "£", "¥": "¥", "₹": "₹"}


class FactorParser(Cursor, ABC):
    """Parses one factor. What may stand inside of brackets is for the whole parser."""

    def __init__(self, tokens: list[Token], *, tight: bool = False):
        super().__init__(tokens)
        self.depth = 0
        self.bars = 0  # open absolute values: their closing bar must not open another
        self.tight = tight
        self.ambiguous = False

    @abstractmethod
    def _list(self) -> Node:
        """Parse a list of relations, down to its last item."""

    @abstractmethod
    def _additive(self) -> Node:
        """Parse a sum."""

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotMath("nested too deeply")

    def _leave(self, node: Node) -> Node:
        self.depth -= 1
        return node

    def _mixed(self, node: Node) -> Node | None:
        r"""Read a whole number before a proper fraction of whole numbers, 3\frac{1}{2}, as a sum; None where there is
        none."""
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
        r"""Return whether a bracket behind a letter holds the argument of a function: \varphi(10), f(x+1), a(n); x(x+1)
        is a product."""
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
        r"""Parse a LaTeX argument: a braced group or one token (\frac12 splits the number)."""
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
            node = times(node, ("num", SCALES[self.peek()[1]], 0))
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
        r"""Return the name before the bar or colon of \{x : ...\} or \{x \in \mathbb{R} | ...\}; None in other sets."""
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
        """Parse what a function applies to: brackets, or the factors up to a sign, a slash or the next function."""
        if self.op() in ("(", "[", "{", "|"):
            return self._primary()
        negative = self.op() == "-"
        if negative:
            self.position += 1
        node = self._factor()
        while self._starts_factor() and self.peek()[0] != "fn" and self.op() != "(":
            node = times(node, self._factor())
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


def times(a: Node, b: Node) -> Node:
    """Return the product of two nodes as one."""
    return ("mul", (*a[1], b)) if a[0] == "mul" else ("mul", (a, b))

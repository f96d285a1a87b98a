"""A place in a list of tokens, and looks around it."""

from __future__ import annotations

from nemo_openmath.grading.lexer import NotMath, Token

_EOF: Token = ("eof", None)


class Cursor:
    """Reads tokens from left to right. A parser may set ``position`` back, and rewrite the token that it stands on."""

    def __init__(self, tokens: list[Token]):
        self.tokens = tokens
        self.position = 0

    def peek(self, ahead: int = 0) -> Token:
        """Return the token ``ahead`` of the position; behind the last one stands ``("eof", None)``."""
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else _EOF

    def op(self, ahead: int = 0) -> str | None:
        """Return the sign ``ahead`` of the position; None where another kind of token stands there."""
        kind, value = self.peek(ahead)
        return value if kind == "op" else None

    def take(self, sign: str) -> bool:
        """Step over ``sign`` where it comes next; say whether it did."""
        if self.peek() == ("op", sign):
            self.position += 1
            return True
        return False

    def expect(self, sign: str) -> None:
        """Step over ``sign``. Raises NotMath where something else comes next."""
        if not self.take(sign):
            raise NotMath(f"expected {sign!r}")

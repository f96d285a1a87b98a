"""Answers that are known to hang, crash or fill graders."""

KILLERS = [
    "9^9^9^9", "9^{9^{9^{9}}}+1", "99999999!", "10000!", "(100!)!", "1000000^{1000000}", "2^{10^9}",
    "(2^{10^6}+1)^{10}",
    "{" * 5000, "(" * 5000 + "1" + ")" * 5000, r"\sqrt" * 3000 + "2", r"\sqrt{" * 100 + "2" + "}" * 100,
    r"\frac{1}{" * 500 + "1" + "}" * 500, "1" * 1_000_000, "9" * 4300, "0" * 1_000_000 + "x", "-" * 10000 + "1",
    "1+" * 4000 + "1",
    "2^" * 3000 + "2", "!" * 9000, "5" + "!" * 30, "1/" * 3000 + "1", "x^{1000000}+1", "(x+1)^{10000}",
    r"\binom{1000000000}{500000000}", r"\sin(10^{1000})", r"\sum_{k=1}^{10^{10}} k", "1," * 3000 + "1", r"\pm1" * 200,
    r"\pm" * 3000, "a" * 10000, "\\" * 9999, " " * 100000 + "1", ".," * 5000, "1 000" * 2000, r"\text{" * 1000,
    "|" * 2000,
    r"\log_{2}" * 1000 + "2", "0.\\overline{" + "1" * 5000 + "}", "1e999999", "1e-99999",
    r"\lfloor 10^{5000}\pi\rfloor",
    r"\sqrt[1000]{2}+\sqrt[999]{3}", "x_" * 2000 + "1", "$" * 5000,
    r"\begin{pmatrix}" + "1&" * 2000 + r"1\end{pmatrix}",
    "[" * 3000 + "]" * 3000, "1|" * 1000, r"\sqrt{2}+" * 300 + "1", "+".join(rf"\sqrt{{{n}}}" for n in range(2, 60)),
    r"(1+\sqrt2)^{100000}", r"\tan" * 500 + "1", "e^{e^{e^{e^{e}}}}", "10^{-10^{10}}", "5" + "%" * 3000,
    "5" + r"^\circ" * 3000,
    r"\gcd(" + "10^{100}," * 500 + "5)", "(9^{9^5})!", "2^{2^{30}}", "x^{x^{x^{x^x}}}", r"\left" * 3000,
    "3 1/2 " * 1500,
    "x!" * 300, "\x00\x01\x02" * 300, "\ud800", r"\binom{100000}{50000}^{3}", r"\{" + "1," * 400 + r"2\}",
    r"\lceil e^{700} \rceil", r"(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11})^{50}", r"\frac{1}{10^{100000}}",
    "(a+b+c+d+e+f)^{300}",
]  # fmt: skip

# Pairs of a killer with something short, or with itself without its last character, that are equal: all there are.
TRUE_EQUALS = {
    frozenset((" " * 100000 + "1", "1")): "white space around a number",
    frozenset(("1|" * 1000, "1")): "ones and absolute values of one, multiplied",
    frozenset(("3 1/2 " * 1500, ("3 1/2 " * 1500)[:-1])): "white space at the end",
    frozenset(("\x00\x01\x02" * 300, ("\x00\x01\x02" * 300)[:-1])): "control characters alone",
}

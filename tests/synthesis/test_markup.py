"""Forum markup: what becomes of it, that no mathematics is lost, that it is done once and in linear time."""

import random

import pytest

from nemo_openmath.synthesis.problems.markup import normalised


@pytest.mark.parametrize(
    ("post", "plain"),
    [
        ("[b][i]Find[/b] x[/i].", "Find x."),  # overlapping
        ("[COLOR=red][size=150]x[/size] + 1", "x + 1"),  # unclosed
        ("[b]Problem 1. Find x.", "Problem 1. Find x."),
        ("[list=1][*]a[*]b[/list]c", "1. a\n2. b\nc"),
        ("<ul><li>a</li><li>b</li></ul>", "- a\n- b"),
        ("[hide=Answer]4[/hide] [hide=\"Click to reveal\"]5[/hide]", "Answer:\n4 5"),
        ('[quote="me"]a[quote]b[/quote]c[/quote]d', "[quote]a[quote]b[/quote]c[/quote]d"),
        ("[quote]a[quote] b", "[quote]a[/quote] b"),  # a slip that is common
        ("[quote]a", "[quote]a"),
        ("see [img]http://x.y/z.png[/img] and <img src='q'/>", "see [image] and [image]"),
        ('<img class="latex" alt="$x^2$" src="q">', "$x^2$"),
        ("[url=http://a]x[/url] [url]http://b[/url] [url=http://c][/url]", "x http://b http://c"),
        ("a<sub>12</sub> e<sup>x-1</sup>>=x, the 4<sup>th</sup>", "a_{12} e^{x-1}>=x, the 4th"),
        ("a &lt; b &amp;lt; c&nbsp;d <br/>e", "a < b < c d\ne"),
        ("x \\equal{} 1 \\plus{} y\\minus{}2 \\\\equal{}", "x = 1 + y-2 \\\\equal{}"),
        ("a\r\nb \r\n\r\n\r\n\r\nc\x00\u200b\ufeff", "a\nb\n\nc"),
        ("\x0crac12 + \x08eta, \ttheta, \x92", "\\frac12 + \\beta, \\theta, ’".replace("\\theta", "\ttheta")),
        ("\ud83d half", "\ufffd half"),
        ("[tex]x[/tex] [asy]draw(A[i]--B[b]<b>C);[/asy]", "$x$ [asy]draw(A[i]--B[b]<b>C);[/asy]"),
        ("[b]" * 3, "[b]" * 3),
    ],
)  # fmt: skip
def test_markup_becomes_plain_text(post: str, plain: str) -> None:
    assert normalised(post) == plain


@pytest.mark.parametrize(
    "post",
    [
        "a<b and c>d, x<b>y, 1<p>q, x<y<z, S<> and < BAC, n<=m<=>k, the group <a>",
        "[a]+[b]=[a+b], [i]+[u], f([b]), [s], ]1;+oo[, \\[b\\], $[b]$, \\\\[2pt]",
        "x & y, 1&lt2, AT&T; a&=b\\\\ c&=d, \\begin{matrix}1&times&2\\end{matrix}",
        "x^2 :) :D ;) :( 8-) :?: \\{x\\} ~ `` '' \t|x|",
        "👨\u200d👩\u200d👧 می\u200cروم",
        "equal{} \\equality \\plus \\minus",
    ],
)
def test_mathematics_and_smilies_stay(post: str) -> None:
    assert normalised(post) == post


_PIECES = ["[b]", "[/b]", "[i]", "[", "]", "b", "<", ">", "/", "<b>", "</b>", "<sup>", "</sup>", "[quote]", "[/quote]"]
_PIECES += ["[quote=x]", "[hide=", "[list]", "[*]", "[/list]", "[code]", "[/code]", "[img]", "[/img]", "&amp;", "&lt;"]
_PIECES += [
    "lt;",
    "&",
    " ",
    "\n",
    "\r",
    "\x00",
    "\\equal{}",
    "\\",
    "x",
    "$",
    "[url=y]",
    "[/url]",
    "th",
    "\x0crac",
    "\xa0",
]


def test_what_is_normalised_stays_as_it_is() -> None:
    rng = random.Random(18)
    for _ in range(2000):
        text = "".join(rng.choices(_PIECES, k=rng.randrange(25)))
        assert normalised(normalised(text)) == normalised(text), repr(text)


_MATHEMATICS = ["x<y", "a_{1}", "[x]+[y]", "\\frac{1}{2}", "2>1", "$n^2$", "|a|", "f(x)=3", "]0;1[", "\\{4\\}", "p & q"]
_AROUND = [
    ("[b]", "[/b]"),
    ("[color=red]", "[/color]"),
    ("<i>", "</i>"),
    ("[size=9]", ""),
    ("", "[/u]"),
    ("[center]", "\r\n"),
]


def test_tags_around_mathematics_leave_it_whole() -> None:
    rng = random.Random(18)
    for _ in range(1000):
        parts = [(rng.choice(_MATHEMATICS), rng.choices(_AROUND, k=rng.randrange(3))) for _ in range(rng.randrange(8))]
        text = " ; ".join("".join(b for b, _ in tags) + part + "".join(e for _, e in tags) for part, tags in parts)
        assert "".join(normalised(text).split()) == "".join(" ; ".join(part for part, _ in parts).split()), repr(text)


@pytest.mark.parametrize(
    "piece",
    ["[b]", "[b]x[/b]", "[quote]", "<a href=\"", "<b ", "[img]", "[code]", "[url=x]", "[[b]b[/b]]", "[hide=", "&",
     " ", " \n", "x\t", "\ud800", "\\", "<sub>", "[list][*]"],
)  # fmt: skip
def test_deep_and_broken_markup_takes_linear_time(piece: str) -> None:
    text = normalised(piece * 10_000)  # in quadratic time this would take minutes
    assert normalised(text) == text


def test_tags_that_hide_tags_deeper_than_any_forum_are_kept() -> None:
    text = "x"
    for _ in range(20):
        text = text.replace("x", "[[b]b]x[[b][/b]/b]")
    assert normalised(normalised(text)) == normalised(text)

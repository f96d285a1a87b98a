"""Forum markup as plain text with mathematics: BBCode, HTML, entities, control characters, spellings of old posts.

What is done is in :func:`normalised`. When in doubt a piece of text stays as it is: ``a<b`` is no tag, ``[a]+[b]`` is
no bold text, and neither is ``x<b>y`` without a ``</b>``. Time and memory grow with the length of the text, however its
tags are nested.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Sequence

ROUNDS = 8
"""A text whose markup hides more markup, deeper than this, is kept."""

_SINGLE = ("b", "i", "u", "s")
_STYLES = (
    "strike", "del", "ins", "center", "left", "right", "justify", "indent", "size", "color", "colour", "font",
    "highlight", "email", "spoiler", "hide",
)  # fmt: skip
_IMAGES = ("img", "attachment", "attach")
_VERBATIM = ("asy", "code")
_FORMULAS = ("tex", "latex", "math")
_WITH_VALUE = (*_STYLES, "url", "quote", "list", *_IMAGES)
_BB = (*_SINGLE, *_WITH_VALUE, *_VERBATIM, *_FORMULAS, "sub", "sup")
_HTML = (
    "b", "i", "u", "s", "em", "strong", "small", "big", "strike", "del", "ins", "font", "center", "span", "div", "tt",
    "p", "br", "hr", "ul", "ol", "li", "table", "tbody", "thead", "tr", "td", "th", "h1", "h2", "h3", "h4", "h5", "h6",
    "a", "img", "sub", "sup", "blockquote", "pre",
)  # fmt: skip
_LINES = ("p", "br", "hr", "table", "tr", "div", "h1", "h2", "h3", "h4", "h5", "h6", "pre")
"""Tags that begin or end a line."""
_LISTS = ("list", "ul", "ol")


def _names(names: Sequence[str]) -> str:
    return "|".join(sorted(names, key=len, reverse=True))


_TAG = re.compile(
    rf"(?<!\\)\[(?P<bb_end>/?)(?:(?P<bb>{_names(_BB)})|(?P<item>\*))"
    rf"(?P<given>[ ]?=(?P<value>[^\[\]\n]*)|(?<=img)[ ][^\[\]\n]*)?\]"
    rf"|<(?P<html_end>/?)(?P<html>{_names(_HTML)})"
    r"(?P<attributes>(?:\s+[\w-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>=]+))*+)\s*/?>",
    re.IGNORECASE,
)
_ATTRIBUTE = re.compile(r"([\w-]+)\s*=\s*(\"[^\"]*\"|'[^']*'|[^\s\"'<>=]+)")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_ORDINAL = re.compile(r"\s*(?:st|nd|rd|th)\s*", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2}")
_DEFAULT_LABEL = re.compile(r"click|hidden|spoiler|hide|show", re.IGNORECASE)

_OLD_SIGNS = re.compile(r"\\(?:(equal|plus|minus)\s?\{\}|\\)")
_SIGNS = {"equal": "=", "plus": "+", "minus": "-", None: "\\\\"}
_ESCAPED = re.compile(  # "\frac" in a program's quotes is a form feed and "rac"
    "\x07(?=lpha|ngle|pprox|rc(?:sin|cos|tan))|\x08(?=eta|egin\\{|inom|oxed|ar\\{|igg?[lr(\\[]|mod|ullet|oldsymbol)"
    "|\x0b(?=ec|ar(?:phi|epsilon)|dots|ert)|\x0c(?=rac|orall)|\t(?=heta|imes(?![a-z])|ext(?:bf|it|rm)?\\{|riangle|frac)"
)
_ESCAPES = {"\x07": "\\a", "\x08": "\\b", "\x0b": "\\v", "\x0c": "\\f", "\t": "\\t"}
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u2064\u2066-\u206f\u3000\ufeff"
    "\ufff9-\ufffb\ud800-\udfff]"
)
_JOINERS = re.compile(  # they spell words of some scripts, and smilies
    "(?<=[\u0590-\u1cff])[\u200c\u200d]|\u200d(?=[\U0001f000-\U0001ffff\u2600-\u27bf])"
)
_SPACES = frozenset("\x1f\xa0\u1680\u202f\u205f\u3000").union(map(chr, range(0x2000, 0x200B)))
_BREAKS = frozenset("\x0b\x0c\x1c\x1d\x1e\u2028\u2029")
_LINE_ENDS = re.compile(r"(?<![ \t])[ \t]++(?=\n)")


def normalised(text: str) -> str:
    """Return a post without its markup. A text that has none comes back as it is, white space at its ends and at the
    ends of its lines aside; so what is normalised stays the same when it is normalised again.

    - Lines end in ``\\n``; two empty lines or more are one. Zero-width and control characters are left out, odd spaces
      are spaces, half a surrogate is U+FFFD. A control character that a command lost its backslash to (a form feed in
      front of "rac") is that command again.
    - ``\\equal{}``, ``\\plus{}``, ``\\minus{}`` of old posts are = + -. Entities of HTML are their characters.
    - Tags of style ([b], [color=...], <span>) are left out. An unclosed [b], [i], [u] is one only where it opens a
      line of words, an unclosed <b> never: it may be mathematics.
    - <sub>, <sup>, [sub], [sup] are ``_{}``, ``^{}``; "4<sup>th</sup>" is "4th".
    - Quotes are ``[quote]``, ``[/quote]``, pictures are ``[image]``; a picture of a formula is its text. The label of a
      hidden text stands before it. A link is its text. Items of a list are lines. [tex] is ``$``.
    - Figures in Asymptote and code stay as they are, within ``[asy]`` and ``[code]``.
    """
    plain = text = _characters(text)
    for _ in range(ROUNDS):
        before = text
        if "&" in text and _ENTITY.search(text):
            text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
        if "[" in text or "<" in text:
            text = _without_tags(text)
        if text is before or (text := _characters(text)) == before:
            return text
    return plain


def _characters(text: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _ODD.search(text) or "\t" in text:
        text = _ESCAPED.sub(lambda control: _ESCAPES[control[0]], text)
        joiners = {match.start() for match in _JOINERS.finditer(text)}
        text = _ODD.sub(lambda odd: odd[0] if odd.start() in joiners else _in_place_of(odd[0]), text)
    if "{}" in text:
        text = _OLD_SIGNS.sub(lambda sign: _SIGNS[sign[1]], text)
    if " \n" in text or "\t\n" in text:
        text = _LINE_ENDS.sub("", text)
    return (re.sub(r"\n{3,}", "\n\n", text) if "\n\n\n" in text else text).strip()


def _in_place_of(character: str) -> str:
    if character in _SPACES:
        return " "
    if character in _BREAKS:
        return "\n"
    if "\ud800" <= character <= "\udfff":
        return "\ufffd"
    if "\x80" <= character <= "\x9f":  # Windows' signs, read as Latin-1
        return "\n" if character == "\x85" else bytes([ord(character)]).decode("cp1252", "ignore")
    return ""


def _without_tags(text: str) -> str:
    """Return a text with its tags replaced, in one pass. Tags that the removal of others makes are left."""
    tags = list(_TAG.finditer(text))
    if not tags:
        return text
    return _Replacement(text, tags).text()


class _Replacement:
    """What stands in place of each tag of a text. A tag of HTML is called "<b", one of BBCode "b"."""

    def __init__(self, text: str, tags: list[re.Match[str]]):
        self._text, self._tags = text, tags
        self._names = [(tag["bb"] or tag["item"] or f"<{tag['html']}").lower() for tag in tags]
        self._ends = [bool(tag["bb_end"] or tag["html_end"]) for tag in tags]
        self._mend_quotes()
        self._partners = self._pairs()
        self._lists: list[tuple[str, int]] = []
        """Kind of each open list, and the number of its last item."""
        self._links: list[tuple[int, str]] = []
        """Of each open link: what had been written when it was opened, and where it leads."""
        self._pieces: list[str] = []
        self._solid = 0  # pieces that are not white space

    def text(self) -> str:
        at = number = 0
        while number < len(self._tags):
            tag, name, partner = self._tags[number], self._names[number], self._partners[number]
            self._write(self._text[at : tag.start()])
            at = tag.end()
            if partner > number and name in (*_IMAGES, *_VERBATIM):  # with all that is within
                close = self._tags[partner]
                self._write("[image]" if name in _IMAGES else f"[{name}]{self._text[at : close.start()]}[/{name}]")
                number, at = partner, close.end()
            else:
                self._write(self._in_place_of(number))
            number += 1
        return "".join([*self._pieces, self._text[at:]])

    def _write(self, piece: str) -> None:
        self._pieces.append(piece)
        self._solid += bool(piece) and not piece.isspace()

    def _mend_quotes(self) -> None:
        """Take the second of two opening quotes for the closing one where there is none."""
        quotes = [number for number, name in enumerate(self._names) if name == "quote"]
        if len(quotes) == 2 and not any(self._ends[n] for n in quotes) and not self._tags[quotes[1]]["given"]:
            self._ends[quotes[1]] = True

    def _pairs(self) -> list[int]:
        """Return the number of each tag's partner, -1 where it has none. Tags of one name are nested; those of two
        names may overlap. Within code there are no tags."""
        partners, opened = [-1] * len(self._tags), defaultdict[str, list[int]](list)
        last = {name: number for number, name in enumerate(self._names) if name in _VERBATIM and self._ends[number]}
        code = None
        for number, (name, end) in enumerate(zip(self._names, self._ends, strict=True)):
            if code is not None and not (end and name == code):
                continue
            if not end:
                opened[name].append(number)
                code = name if number < last.get(name, -1) else None
                continue
            code = None
            if opened[name]:
                begin = opened[name].pop()
                partners[begin], partners[number] = number, begin
        return partners

    def _in_place_of(self, number: int) -> str:
        tag, end, paired = self._tags[number], self._ends[number], self._partners[number] >= 0
        name = self._names[number].removeprefix("<")
        if name in ("quote", "blockquote"):
            return "[/quote]" if end else "[quote]"
        if name in _LISTS:
            return self._list(tag, name, end)
        if name in ("*", "li"):
            return "" if end else self._item() if name == "li" or self._lists else tag[0]
        if name in ("a", "url") and (paired or tag["given"] or tag["attributes"] or end):
            return self._link(tag, end) if paired else ""
        if name in ("hide", "spoiler"):
            label = "" if end else _value(tag)
            return f"{label}:\n" if label and not _DEFAULT_LABEL.search(label) else ""
        if name == "img" and tag["html"]:
            alt = html.unescape(_attribute(tag, "alt")).strip()
            return alt if alt.startswith(("$", "\\(", "\\[")) else "[image]"
        if not paired and self._is_text(tag, name, end):
            return tag[0]
        if name in ("sub", "sup"):
            return self._index(number, name, end)
        if name in _FORMULAS:
            return "$"
        return "\n" if name in _LINES else " " if name in ("td", "th") else ""

    def _is_text(self, tag: re.Match[str], name: str, end: bool) -> bool:
        """Return whether a tag without a partner may be mathematics, or has to stay so that nothing is lost."""
        if name in ("sub", "sup", "url", *_IMAGES, *_VERBATIM, *_FORMULAS):
            return True
        if end or len(name) > 1:
            return False
        if tag["html"]:
            return not tag["attributes"]
        opens_line = tag.start() == 0 or self._text[tag.start() - 1] == "\n"
        return not (opens_line and name in "biu" and _WORD.match(self._text, tag.end()))

    def _index(self, number: int, name: str, end: bool) -> str:
        first, last = sorted((number, self._partners[number]))
        within = self._tags[first].end(), self._tags[last].start()
        if name == "sup" and last == first + 1 and _ORDINAL.fullmatch(self._text, *within):
            return ""
        return "}" if end else "_{" if name == "sub" else "^{"

    def _link(self, tag: re.Match[str], end: bool) -> str:
        """Write where a link leads if nothing else is said in it."""
        if not end:
            self._links.append((self._solid, _attribute(tag, "href") if tag["html"] else _value(tag)))
            return ""
        before, target = self._links.pop() if self._links else (-1, "")
        return target if before == self._solid else ""

    def _list(self, tag: re.Match[str], name: str, end: bool) -> str:
        if not end:
            self._lists.append(("1" if name == "ol" else _value(tag), 0))
        elif self._lists:
            self._lists.pop()
        return "\n"

    def _item(self) -> str:
        kind, count = self._lists.pop() if self._lists else ("", 0)
        self._lists.append((kind, count + 1))
        if kind == "1":
            return f"\n{count + 1}. "
        return f"\n{chr(ord(kind) + count)}. " if kind in ("a", "A") and count < 26 else "\n- "


def _value(tag: re.Match[str]) -> str:
    """Return what is given behind "=" in a tag of BBCode, without quotes around it."""
    return (tag["value"] or "").strip().strip("\"'").strip()


def _attribute(tag: re.Match[str], name: str) -> str:
    for key, value in _ATTRIBUTE.findall(tag["attributes"]):
        if key.lower() == name:
            return value.strip("\"'")
    return ""

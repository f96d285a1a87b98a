"""Tell whether a problem lists anything that could be choices: what is certainly not multiple choice."""

from __future__ import annotations

import re

_LABELS = (
    r"[(\[]\s*([^\W\d_]|\d{1,2}|[ivx]{2,4}|[IVX]{2,4})\s*[)\]]",  # (A) [b] (1) (iv)
    r"([^\W\d_]|\d{1,2}|[ivx]{2,4}|[IVX]{2,4})\s*[).:]",  # A) b. 1) IV.
    r"([A-H]|[a-h])\b[^\n]{1,40}",  # A 12 B 15, where both are there
)
_LABELLED = tuple(re.compile(rf"(?:^|(?<=[\s{{;,.?:}}$&~])){label}", re.M) for label in _LABELS)
_CHOOSING = re.compile(
    r"\b(?:which|choose|choice|chosen|select|pick|options?|alternatives?|following|either|or|correct|incorrect|closest"
    r"|nearest|best|among|match|tick|mark|circle the|these|those|below|not all"
    r"|cu[aá]l(?:es)?|siguientes?|o|ou|oder|quel(?:le)?s?|suivante?s?|welche[rsnm]?|folgenden?|qual|quais|seguintes?"
    r"|quale|seguenti)\b",
    re.I,
)
_LISTED = re.compile(
    r"\\item\b|\\begin\{(?:enumerate|itemize|tabular|array|tasks|choices)\}|\\choice|[□☐○◯①②Ⓐ]|^\s*[-*•]\s"
    r"|\\?[{\[][^{}\[\]]*[,;/|][^{}\[\]]*\}|[^\W\d_]{2,}\s*/\s*[^\W\d_]{2,}"
    r"|(?:\d[^,;\n]{0,20}[,;/]\s*[^,;\n]{0,20}){2}\d"
    r"|(?:\\q?quad[^\n]*){2}|\d\S*(?:\s+[-–—]+\s+\S*\d\S*){2}|(?:[{<(\[][^{}<>()\[\]]{1,20}[}>)\]]\s+){2}"
    r"|\b(?:yes|true)\W{1,6}(?:no|false)\b"
    r"|(?:^|\s)_{2,}|\\_|\\underline|\\rule|(?:…|\.\.\.)\s*$",
    re.M | re.I,
)
_BEHIND = re.compile(r"[?:]\W*\w[^?]*\w\W*\Z")
_SERIES = re.compile(r"(?:[^,;.?]{1,40}[,;/]\s+){2}[^,;.?]{1,40}\W*\Z")
_LINES = re.compile(r"(?:\n[^\n]{1,60}){3}\s*\Z|(?:\n[^\n]{1,20}){2}\s*\Z|(?:\s\S{0,8}\d\S{0,8}){3}\W*\Z")


def may_list_choices(text: str) -> bool:
    """Return whether a problem may list answers to choose among. In doubt it may: labels, a word that chooses, a list
    of any kind, text behind the question, or a script whose words are not known here."""
    letters = [sign for sign in text if sign.isalpha()]
    if sum(sign > "\u024f" for sign in letters) > len(letters) / 5:
        return True
    if any(len(set(label.findall(text))) > 1 for label in _LABELLED):
        return True
    return any(pattern.search(text) for pattern in (_CHOOSING, _LISTED, _BEHIND, _SERIES, _LINES))

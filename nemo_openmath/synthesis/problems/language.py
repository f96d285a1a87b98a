"""Which language a post is in, by its script and its commonest words. A rule of our own, without a model.

It is made to leave out what is certainly in another language. Formulas, names and short posts are in no language that
could be told, and a post in two languages is in both: such posts are kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Literal, get_args

Language = Literal[
    "ar", "bg", "cs", "de", "el", "en", "es", "fa", "fr", "he", "hi", "hu", "id", "it", "ja", "ko", "nl", "pl", "pt",
    "ro", "ru", "th", "tr", "uk", "vi", "zh",
]  # fmt: skip
LANGUAGES: tuple[str, ...] = get_args(Language)

_SCRIPTS: tuple[tuple[str, str], ...] = (  # letters of a script, and the languages written in it
    (r"[\u3040-\u30ff]", "ja"),
    (r"[\uac00-\ud7a3]", "ko"),
    (r"[\u4e00-\u9fff]", "zh ja"),
    (r"[\u0400-\u04ff]{2,}", "ru uk bg"),
    (r"[\u0600-\u06ff]{2,}", "ar fa"),
    (r"[\u0590-\u05ff]{2,}", "he"),
    (r"[\u0370-\u03ff\u1f00-\u1fff]{3,}", "el"),
    (r"[\u0900-\u097f]{2,}", "hi"),
    (r"[\u0e00-\u0e7f]{2,}", "th"),
)
_WORDS = {
    "en": "the of is that and are find prove let for with such if be to what we which this how show it from can there",
    "de": "der und ist das ein eine sei zeige dass für mit von wie sind gilt nicht auf dem den zeigen werden alle",
    "fr": "le les et est une des que soit pour dans montrer un la du tel sont avec trouver si par qui tous soient où",
    "es": "el los es una que sea para con por las un la del son se tal hallar demostrar como si entonces todos",
    "it": "il che di una sia per con della dei del sono un la tale se dimostrare trovare gli nel le siano tutti",
    "pt": "os uma que seja para com por das dos um do da são se tal prove determine encontre então todos não",
    "ro": "și si este că sa în un pentru care fie cu să din sunt se arătați dacă numere determinați unde toate arate",
    "nl": "het een en van de dat is voor met zijn bewijs alle niet op zij als waarbij bepaal getallen wordt geldt",
    "pl": "że jest się na dla liczby udowodnij nie do są wszystkie oraz jeśli niech gdzie wynosi takie znajdź",
    "cs": "že je pro jsou najděte dokažte všechna která čísla platí nechť kde takové pokud není jestliže",
    "hu": "hogy az egy és nem van legyen minden bizonyítsuk ha szám ezek meg azt számok olyan kell akkor milyen",
    "tr": "bir ve için olan ile kaç olsun bu olmak üzere sayı değeri kaçtır göre eğer gösterin sayısı tüm bulunuz",
    "id": "dan yang adalah untuk dari dengan jika bilangan buktikan tentukan bahwa pada ini di semua suatu maka nilai",
    "vi": "và của là cho các số một với có không tìm chứng minh rằng trong được thỏa mãn tất cả điểm giác dương",
}
_COMMON = {language: frozenset(words.split()) for language, words in _WORDS.items()}
_LANGUAGES_OF_WORD = {
    word: [language for language, words in _COMMON.items() if word in words]
    for word in frozenset().union(*_COMMON.values())
}
_NO_PROSE = re.compile(r"\$[^$]{0,2000}\$|\\[A-Za-z]+|https?://\S+|\[/?\w+\]")
_PROSE_WORD = re.compile(r"[^\W\d_]{2,}")
_OTHER_SCRIPT = re.compile(r"[\u0370-\u1cff\u1f00-\u1fff\u3040-\uffdc]")
_LOOK = 5000
"""So many characters of a post are looked at."""
_SURE = 5
"""So many common words of a language make a post one of that language, if ``_DIFFERENT`` of them differ."""
_DIFFERENT = 3


def languages_of(post: str) -> frozenset[str]:
    """Return the languages that a post may be in; none where it does not tell."""
    text = _NO_PROSE.sub(" ", post[:_LOOK])
    letters = sum(map(len, words := _PROSE_WORD.findall(text.lower())))
    counts, different = dict.fromkeys(_COMMON, 0), dict.fromkeys(_COMMON, 0)
    for word, number in Counter(words).items():
        for language in _LANGUAGES_OF_WORD.get(word, ()):
            counts[language] += number
            different[language] += 1
    if _OTHER_SCRIPT.search(text):
        for pattern, languages in _SCRIPTS:
            written = sum(map(len, re.findall(pattern, text)))
            if written >= max(4, letters // 3):
                return frozenset(languages.split()) | ({"en"} if counts["en"] >= _SURE else set())
    most = max(counts.values())
    if most < _SURE or max(different.values()) < _DIFFERENT:
        return frozenset()
    return frozenset(language for language, count in counts.items() if 3 * count >= most and count >= 2)


def may_be_in(post: str, languages: Collection[str]) -> bool:
    """Return whether a post is in one of the languages, or may be."""
    possible = languages_of(post)
    return not possible or not possible.isdisjoint(languages)

"""Units, currencies and counted things that stand behind a number."""

from __future__ import annotations

from fractions import Fraction

Dimension = tuple[tuple[str, int], ...]  # (base unit, exponent), sorted by name


def _table() -> dict[str, tuple[str, Fraction, int]]:
    """Return word -> (base unit, size in it, exponent)."""
    table: dict[str, tuple[str, Fraction, int]] = {}

    def add(base: str, size: str | int, words: str, exponent: int = 1) -> None:
        for word in words.split():
            table[word] = (base, Fraction(size), exponent)

    add("m", "1/1000", "mm millimeter millimeters millimetre millimetres")
    add("m", "1/100", "cm centimeter centimeters centimetre centimetres")
    add("m", "1/10", "dm decimeter decimeters")
    add("m", 1, "m meter meters metre metres")
    add("m", 1000, "km kilometer kilometers kilometre kilometres")
    add("m", "254/10000", "in inch inches")
    add("m", "3048/10000", "ft foot feet")
    add("m", "9144/10000", "yd yard yards")
    add("m", "1609344/1000", "mi mile miles")
    add("m", "1/1000", "l L liter liters litre litres", 3)
    add("m", "1/1000000", "ml mL milliliter milliliters cc", 3)
    add("m", 10000, "ha hectare hectares", 2)
    add("s", 1, "s sec secs second seconds")
    add("s", 60, "min mins minute minutes")
    add("s", 3600, "h hr hrs hour hours")
    add("s", 86400, "day days")
    add("s", 604800, "week weeks")
    add("year", 1, "year years yr yrs")
    add("year", "1/12", "month months")
    add("g", "1/1000", "mg milligram milligrams")
    add("g", 1, "g gram grams")
    add("g", 1000, "kg kilogram kilograms")
    add("g", 1000000, "tonne tonnes")
    add("lb", 1, "lb lbs")
    add("lb", "1/16", "oz ounce ounces")
    add("USD", 1, "dollar dollars USD usd bucks")
    add("USD", "1/100", "cent cents ¢")
    add("EUR", 1, "€ euro euros EUR")
    add("GBP", 1, "£ GBP")
    add("JPY", 1, "¥ yen yuan")
    add("INR", 1, "₹ rupee rupees")
    add("deg", 1, "degree degrees deg °")
    add("rad", 1, "rad radian radians")
    add("degC", 1, "celsius")
    add("degF", 1, "fahrenheit")
    add("pound", 1, "pound pounds")  # a currency or a weight: only like with like
    add("ton", 1, "ton tons")
    add("gallon", 1, "gallon gallons gal")
    add("acre", 1, "acre acres")
    add("unit", 1, "unit units")
    return table


UNITS = _table()
_HOUR = ("s", Fraction(3600), -1)
_FORCE = (("g", Fraction(1000), 1), ("m", Fraction(1), 1), ("s", Fraction(1), -1), ("s", Fraction(1), -1))
_ENERGY = (*_FORCE, ("m", Fraction(1), 1))
_POWER = (*_ENERGY, ("s", Fraction(1), -1))
COMPOSITE = {  # word -> (base unit, size in it, exponent of 1 or -1), ...
    "mph": (("m", Fraction(1609344, 1000), 1), _HOUR),
    "kph": (("m", Fraction(1000), 1), _HOUR),
    "kmh": (("m", Fraction(1000), 1), _HOUR),
    **dict.fromkeys(("N", "newton", "newtons"), _FORCE),
    **dict.fromkeys(("J", "joule", "joules"), _ENERGY),
    **dict.fromkeys(("W", "watt", "watts"), _POWER),
    **dict.fromkeys(("Hz", "hertz"), (("s", Fraction(1), -1),)),
}
# Units that measure one thing without a fixed rate in the table above (acre and m^2, year and day, pound and gram):
# quantities in them are not told apart.
_MEASURES = {
    "year": (("time", 1),), "s": (("time", 1),), "lb": (("mass", 1),), "ton": (("mass", 1),), "g": (("mass", 1),),
    "pound": (("mass", 1),), "gallon": (("length", 3),), "acre": (("length", 2),), "m": (("length", 1),),
    "degC": (("temperature", 1),), "degF": (("temperature", 1),), "deg": (("angle", 1),), "rad": (("angle", 1),),
}  # fmt: skip
# "and" joins a smaller part to these: 2 hours and 30 minutes, 5 dollars and 25 cents, 5 feet and 6 inches.
MIXED = frozenset(
    word
    for word, (base, size, _) in UNITS.items()
    if base in ("s", "USD", "year", "lb") or (base == "m" and size in (Fraction(9144, 10000), Fraction(3048, 10000)))
)
# 5 m may be five times m
LONE_LETTERS = frozenset(word for word in (*UNITS, *COMPOSITE) if len(word) == 1 and word.isascii())

COUNTED = frozenset(
    """apples oranges balls books boxes boys girls cards chairs coins cookies children days digits dogs cats edges
    elements faces factors friends games guests integers items lines marbles matches men women moves numbers objects
    pages pairs parts pencils people persons pieces players points positions possibilities primes problems rectangles
    regions rolls rows columns seats sequences solutions squares steps stones students subsets sweets teams terms
    tickets tiles times triangles trees turns values vertices ways words workers arrangements combinations
    permutations functions polynomials divisors""".split()  # noqa: SIM905
) - {"days"}

SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}


def measured(dimension: Dimension) -> Dimension:
    """Return what a quantity of this dimension measures: length and mass of whatever units."""
    parts: dict[str, int] = {}
    for base, exponent in dimension:
        for measure, power in _MEASURES.get(base, ((base, 1),)):
            parts[measure] = parts.get(measure, 0) + exponent * power
    return tuple(sorted((measure, exponent) for measure, exponent in parts.items() if exponent))


def letter_unit(word: str) -> tuple[dict[str, int], Fraction]:
    """Return the exponents of the base units and the size of a unit that is a letter: ({"m": 1}, 1) of m."""
    parts: dict[str, int] = {}
    size = Fraction(1)
    for base, factor, exponent in COMPOSITE.get(word) or (UNITS[word],):
        parts[base] = parts.get(base, 0) + exponent
        size *= factor ** (1 if exponent > 0 else -1) if word in COMPOSITE else factor
    return parts, size


def dimension(parts: dict[str, int]) -> Dimension:
    """Return the dimension of a product of base units: those with an exponent, in order."""
    if "degC" in parts or "degF" in parts:  # degrees Celsius
        parts = {base: exponent for base, exponent in parts.items() if base != "deg"}
    return tuple(sorted((base, exponent) for base, exponent in parts.items() if exponent and base != "unit"))

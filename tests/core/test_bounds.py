"""Settings out of range are refused when a configuration is read: every number of every settings class has a range."""

import dataclasses
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

from nemo_openmath.core.bounds import Bounds, Length, NonNegativeInt, PositiveInt, Share, Words
from nemo_openmath.core.build import OVERRIDE, Builder
from nemo_openmath.core.errors import UserError
from tests.support.settings import settings_classes


def unbounded(hint: Any) -> Iterator[Any]:
    """Numbers in a type that no Bounds go with."""
    if typing.get_origin(hint) is Annotated:
        if not any(isinstance(mark, Bounds) for mark in typing.get_args(hint)[1:]):
            yield from unbounded(typing.get_args(hint)[0])
    elif hint in (int, float):
        yield hint
    elif typing.get_origin(hint) is not typing.Literal:
        for inner in typing.get_args(hint):
            yield from unbounded(inner)


def test_every_number_of_the_settings_has_a_range() -> None:
    classes = settings_classes()
    assert len(classes) > 40
    free = [
        f"{cls.__module__}.{cls.__name__}.{field.name}"
        for cls in classes
        for field in dataclasses.fields(cls)
        if list(unbounded(typing.get_type_hints(cls, include_extras=True)[field.name]))
    ]
    assert free == []


def test_every_default_is_inside_its_range() -> None:
    for cls in settings_classes():
        for field in dataclasses.fields(cls):
            hint = typing.get_type_hints(cls, include_extras=True)[field.name]
            if typing.get_origin(hint) is Annotated and field.default is not dataclasses.MISSING:
                assert not [m for m in hint.__metadata__ if m.problem(field.default)], (cls, field.name)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "text"),
    [
        (Bounds(0, 1), [0, 0.5, 1], [-0.1, 1.1, math.nan], "0 or more, at most 1"),
        (Bounds(0, 1, below=True), [0, 0.99], [1, -1], "0 or more, less than 1"),
        (Bounds(0, 1, above=True), [1, 0.01], [0, 2], "more than 0, at most 1"),
        (Bounds(0, above=True), [1e-9], [0, math.inf], "more than 0"),
        (Bounds(1), [1], [0, -5], "1 or more"),
        (Bounds(), [-3, 0], [math.nan, -math.inf], "a finite number"),
    ],
)
def test_what_a_range_holds_and_how_it_reads(
    bounds: Bounds, inside: list[float], outside: list[float], text: str
) -> None:
    assert [v for v in inside if bounds.problem(v)] == []
    assert [v for v in outside if not bounds.problem(v)] == []
    assert str(bounds) == text


@dataclasses.dataclass(frozen=True)
class Settings:
    problems: PositiveInt = 3
    top: NonNegativeInt | None = None
    share: Share = 0.5
    steps: Annotated[tuple[PositiveInt, ...], Length()] = (1,)
    weights: dict[str, Share] = dataclasses.field(default_factory=dict)
    sources: Annotated[tuple[str, ...], Words()] = ()
    forums: Annotated[tuple[str, ...], Words(1)] | None = None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"problems": -3}, "problems: -3 is out of range; choose 1 or more"),
        ({"top": -1}, "top: -1 is out of range; choose 0 or more"),
        ({"share": 3}, "share: 3.0 is out of range; choose 0 or more, at most 1"),
        ({"share": ".nan"}, "share: expected a number"),
        ({"share": "nan"}, "share: nan is out of range"),
        ({"steps": []}, "steps: [] has 0 entries; give at least 1"),
        ({"steps": [2, 0]}, "steps.1: 0 is out of range"),
        ({"weights": {"cot": 1.5}}, "weights.cot: 1.5 is out of range"),
        ({"sources": [""]}, "sources: [''] has an empty word, which is in every text; remove it"),
        ({"sources": ["olympiad", " "]}, "sources: ['olympiad', ' '] has an empty word"),
        ({"forums": []}, "forums: [] has 0 entries; give at least 1"),
        ({"forums": [""]}, "forums: [''] has an empty word"),
    ],
)
def test_a_number_out_of_range_is_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Builder(lambda key: OVERRIDE, Path(".")).build(Settings, data)
    assert message in str(error.value)


def test_every_setting_that_looks_for_words_refuses_an_empty_one() -> None:
    """By the name of the setting, so that one that comes later is not forgotten."""
    names = [
        (cls, field.name)
        for cls in settings_classes()
        for field in dataclasses.fields(cls)
        if field.name in ("sources", "not_sources")
    ]
    assert len(names) >= 5
    for cls, name in names:
        with pytest.raises(UserError, match="has an empty word"):
            Builder(lambda key: OVERRIDE, Path(".")).build(cls, {name: [""]})

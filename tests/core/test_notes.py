"""What a selection and a submission say is read as it was written, and refused by name where it is broken."""

import re
from typing import Any

import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.records import Generation, Mode
from nemo_openmath.core.records.notes import Selection, Submission, Timing


def generation(extra: dict[str, Any]) -> Generation:
    return Generation(
        id="g", problem_id="p", mode=Mode.GENSELECT, model="m", sample=0, transcript={}, finish="stop", extra=extra
    )


@pytest.mark.parametrize(
    "note", [Selection("group-1", "s3", 8, 2), Selection("group-1", None, 8, 0), Submission(3, 5, 1.25)]
)
def test_a_note_is_read_as_it_was_written(note: Selection | Submission) -> None:
    assert type(note).of(generation(note.to_extra() | {"source": "aops"})) == note


@pytest.mark.parametrize(
    ("kind", "change", "detail"),
    [
        (Selection, {"k": None}, "k is None"),
        (Selection, {"chosen": 3}, "chosen is 3"),
        (Submission, {"votes": True}, "votes is True"),
        (Submission, {"seconds": "1"}, "seconds is '1'"),
    ],
)
def test_a_broken_note_is_refused_by_name(kind: Any, change: dict[str, Any], detail: str) -> None:
    whole = {Selection: Selection("a", "b", 4, 0), Submission: Submission(1, 1, 1.0)}[kind].to_extra()
    with pytest.raises(UserError, match=re.escape(f"({detail})")):
        kind.of(generation(whole | change))
    name = next(iter(change))
    with pytest.raises(
        UserError, match=rf"{kind.__name__.lower()} g .*\(no '{name}'\); remove the folder of the stage"
    ):
        kind.of(generation({key: value for key, value in whole.items() if key != name}))


TIMING = Timing(((0.0, 0), (2.5, 40), (4.0, 40), (9.125, 130)), 1.5, 1.2, 0.25, 0.5, 64, cut=True)


@pytest.mark.parametrize("note", [TIMING, Timing(((0.0, 0), (1.0, 3)))])
def test_a_timing_is_read_as_it_was_written(note: Timing) -> None:
    assert Timing.of(generation(note.to_extra())) == note
    assert Timing.of(generation({})) is None


@pytest.mark.parametrize(
    "damage", [{"points": [[2, 1], [1, 2]]}, {"points": []}, {"points": [[0, 0], [1]]}, {"began": None}]
)
def test_a_damaged_timing_is_refused_by_name(damage: dict[str, object]) -> None:
    note = TIMING.to_extra()["timing"] | damage
    with pytest.raises(UserError, match="generation g "):
        Timing.of(generation({"timing": note}))

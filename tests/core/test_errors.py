"""Errors cross process borders whole."""

import pickle

import pytest

from nemo_openmath.core.errors import DamagedFile, MissingExtra, UserError


@pytest.mark.parametrize(
    "error",
    [UserError("wrong", file="f", row=3, remedy="mend"), DamagedFile("f", "cut"), MissingExtra("p", "gpu", "speed")],
)
def test_errors_survive_pickling(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert vars(again) == vars(error)

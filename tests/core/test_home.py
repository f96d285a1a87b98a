"""Commands find a home where containers give none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.home import prepare_home


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What these tests change of the process's environment is not for those that follow."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_home_that_can_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    prepare_home()
    assert os.environ["HOME"] == str(tmp_path)


def test_a_home_that_is_missing_becomes_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    prepare_home()
    home = Path(os.environ["HOME"])
    assert home == tmp_path / f"openmath-{os.getuid()}"
    assert home.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("HOME", "/nonexistent")
    prepare_home()  # every rank does this
    assert Path(os.environ["HOME"]) == home


def test_a_folder_that_others_can_write_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / f"openmath-{os.getuid()}"
    theirs.mkdir()
    theirs.chmod(0o777)
    monkeypatch.setenv("HOME", "/nonexistent")
    prepare_home()
    assert Path(os.environ["HOME"]).parent == tmp_path
    assert Path(os.environ["HOME"]) != theirs


def test_a_user_without_a_name_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", _unknown)
    prepare_home()
    assert os.environ["USER"] == f"uid-{os.getuid()}"


def test_no_folder_for_temporary_files_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    with pytest.raises(UserError, match=r"no folder for temporary files .* --tmpfs /tmp:exec"):
        prepare_home()


def _unknown(number: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {number}")

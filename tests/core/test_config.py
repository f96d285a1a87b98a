"""Configuration: every value has an origin, every mistake a place and a remedy."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from nemo_openmath.core.build import Builder, Origin
from nemo_openmath.core.config import Source
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.snapshot import Snapshot, snapshot_text
from nemo_openmath.recipe.setting_docs import settings


@dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError("lr must be above 0")


@dataclass(frozen=True)
class Outer:
    name: str
    steps: int = 3
    inner: Inner = field(default_factory=Inner)
    tags: tuple[str, ...] = ()
    path: Path | None = None
    most: int | None = 2


def build(tmp_path: Path, text: str, *overrides: str) -> tuple[Outer, dict[str, str]]:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    source = Source.read(file, overrides)
    builder = Builder(source.origin, taken_out=source.taken_out)
    made = builder.build(Outer, source.data)
    return made, {".".join(v.key): str(v.origin).replace(str(tmp_path) + "/", "") for v in builder.values}


def test_values_and_origins(tmp_path: Path) -> None:
    assert build(tmp_path, "name: 4:00:00\n")[0].name == "4:00:00"  # which YAML 1.1 calls 14400
    made, origins = build(tmp_path, "name: x\ninner:\n  lr: 1e-4\ntags: [p, q]\n", "steps=7", "inner.kind=b")
    assert made == Outer("x", 7, Inner(1e-4, "b"), ("p", "q"), None)
    assert origins == {
        "name": "c.yaml:1",
        "steps": "override",
        "inner.lr": "c.yaml:3",
        "inner.kind": "override",
        "tags.0": "c.yaml:4",
        "tags.1": "c.yaml:4",
        "path": "default",
        "most": "default",
    }


def test_null_over_a_value_is_null_where_a_setting_may_be_null(tmp_path: Path) -> None:
    """Else it has its default: a file that extends, an override and a snapshot say the same by the same words."""
    (tmp_path / "base.yaml").write_text("name: base\nsteps: 1\nmost: 5\ninner: {lr: 0.5}\n")
    nulls = "extends: base.yaml\nsteps: null\nmost: null\ninner: null\n"
    for text, overrides in ((nulls, ()), ("extends: base.yaml\n", ("steps=null", "most=null", "inner=null"))):
        made, origins = build(tmp_path, text, *overrides)
        assert made == Outer("base", most=None)
        assert origins["most"] == ("override" if overrides else "c.yaml:3")
        source = Source.read(tmp_path / "c.yaml", overrides)
        snapshot = Snapshot(tmp_path / "c.yaml", "", (), overrides, tmp_path)
        assert build(tmp_path, snapshot_text(source.data, source.origins, snapshot))[0] == made
    assert build(tmp_path, "extends: base.yaml\nmost: null\n", "most=7")[0].most == 7
    assert build(tmp_path, "name: x\n", "most=null")[0].most is None
    assert build(tmp_path, "name: x\nmost: null\n")[0].most is None


def test_extends_and_anchors(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\nsteps: 1\ninner: {lr: 0.5, kind: b}\n")
    made, origins = build(tmp_path, "extends: base.yaml\nname: top\ninner: {lr: 0.25}\n")
    assert made == Outer("top", 1, Inner(0.25, "b"))
    assert origins["steps"] == "base.yaml:2"
    assert origins["inner.lr"] == "c.yaml:3"
    assert origins["inner.kind"] == "base.yaml:3"
    made, _ = build(tmp_path, "name: x\ninner:\n  <<: &i {lr: 0.5, kind: b}\n  lr: 0.125\n")
    assert made.inner == Inner(0.125, "b")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("name: x\nstesp: 3\n", (), r"c\.yaml:2: stesp: unknown setting; did you mean 'steps'\?"),
        ("name: x\nsteps: many\n", (), r"c\.yaml:2: steps: expected a whole number, got 'many'"),
        ("name: x\nsteps: true\n", (), r"steps: expected a whole number, got True"),
        ("steps: 3\n", (), r"name: this setting is required"),
        ("name: x\ninner:\n  kind: c\n", (), r"c\.yaml:3: inner\.kind: 'c' is not a choice; known: a, b"),
        ("name: x\ninner: {lr: -1}\n", (), r"c\.yaml:2: inner: lr must be above 0"),
        ("name: x\ninner: 3\n", (), r"inner: expected settings of Inner, got 3"),
        ("name: x\nname: y\n", (), r"c\.yaml:2: name: given twice"),
        ("name: [x\n", (), r"c\.yaml:2: not YAML"),
        ("", (), r"the file is empty"),
        ("name: x\n", ("steps",), r"not an override: 'steps'"),
        ("name: x\n", ("name.deep=1",), r"name holds no settings"),
        ("name: x\n", ("steps=12:30",), r"steps: expected a whole number, got '12:30'"),
        ("name: !!python/name:x y\n", (), r"c\.yaml:1: cannot read the value of name \(could not determine"),
        ("name: &a [*a]\n", (), r"c\.yaml: nested too deeply, or an anchor that holds itself"),
        ("name: " + "[" * 3000 + "]" * 3000, (), r"c\.yaml: nested too deeply"),
        ("name: x\npath: 5\n", (), r"c\.yaml:2: path: expected a path, got 5"),
        ("name: x\n", ("steps=",), r"override steps: no value; write one; null takes the setting out"),
        ("name: x\n", ("steps=" + "9" * 20,), r"steps: 9+ is beyond 64 bits; choose a smaller number"),
        ("name: x\n", ("inner.lr=" + "9" * 400,), r"inner\.lr: 9+\.\.\. is beyond 64 bits"),
        ("name: x\n", ("steps=" + "9" * 5000,), r"cannot read the value of steps \("),
        ("name: x\n", ("steps=2024-13-45",), r"cannot read the value of steps \("),
        ("name: x\nsteps: 2024-13-45\n", (), r"c\.yaml:2: cannot read the value of steps \("),
        ("extends: nowhere.yaml\n", (), r"c\.yaml:1: extends: no file .*nowhere\.yaml; copy that file too"),
        ("extends: c.yaml\n", (), r"this file extends itself"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path, text, *overrides)


@dataclass(frozen=True)
class Draws:
    temperature: float = 0.7
    top_p: float = 0.95


@dataclass(frozen=True)
class Solver:
    draws: Draws = field(default_factory=lambda: Draws(temperature=0.0))


def test_settings_around_others_keep_the_defaults_that_they_give_them() -> None:
    builder = Builder(lambda key: Origin("x.yaml"))
    assert builder.build(Solver, {"draws": {"top_p": 0.5}}) == Solver(Draws(temperature=0.0, top_p=0.5))
    assert {value.key: value.value for value in builder.values}["draws", "temperature"] == 0.0
    assert {setting.name: setting.default for setting in settings(Solver)} == {
        "draws.temperature": "0.0",
        "draws.top_p": "0.95",
    }

"""Nothing has to be looked up in the source: every setting of every kind is printed with type, default and meaning."""

from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import yaml

from nemo_openmath.cli.generate import GENERATE_EXAMPLE
from nemo_openmath.cli.main import run
from nemo_openmath.cli.sft import SFT_EXAMPLE
from nemo_openmath.core.build import OVERRIDE, Builder
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.stage import stage_kinds
from nemo_openmath.demo.rates import TeacherConfig
from nemo_openmath.recipe.drop_reasons import drop_reasons
from nemo_openmath.recipe.generate import GenerateJob
from nemo_openmath.recipe.reference import describe
from nemo_openmath.recipe.setting_docs import Setting, meaning, settings
from nemo_openmath.training.config import TrainingJob
from tests.support.settings import settings_classes


@pytest.mark.parametrize("cls", [*settings_classes(), TeacherConfig], ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_every_setting_has_a_docstring_under_its_field(cls: type) -> None:
    """Of every stage, of the recipe file, the cluster file and the job files."""
    assert [field.name for field in fields(cls) if field.init and not meaning(cls, field.name)] == []
    assert cls.__doc__
    assert not any(f"``{field.name}``:" in cls.__doc__ for field in fields(cls)), "documented in two places"


@pytest.mark.parametrize("kind", stage_kinds())
def test_a_description_names_every_input(kind: str) -> None:
    description = describe(kind)
    for port, holds in stage_kinds()[kind].ports.items():
        assert f"  {port.removesuffix('?')}: {holds}" in description


def test_a_kind_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "stages", "rollout.generate"]) is ExitCode.OK
    said = capsys.readouterr().out
    for line in (
        "name: {run: rollout.generate, from: STAGE}",
        "samples: whole number, 1 or more; default 1",
        "top_p: number, more than 0, at most 1; default 0.95",
        "mode: cot | tir",
        "records (Generation)",
    ):
        assert line in said
    assert "checkpoints.every: whole number, 0 or more; default 0" in describe("training.sft")
    assert "weights: mapping, such as {NAME: 0.5} (number, 0 or more); default {}" in describe("sft.pack")
    assert "format: fp8 | fp8_kv | int8 | int4_awq; required" in describe("checkpoints.quantize")
    with pytest.raises(UserError, match=r"did you mean 'training\.sft'"):
        describe("trainin.sft")


@dataclass(frozen=True)
class Parent:
    bound: int = 0
    """At most this many, in tokens.

    Paper section 2.3.
    """


@dataclass(frozen=True)
class Settings(Parent):
    """What a class says of itself."""

    rate: float = 0.5
    """Share of rows that are left out."""
    plain: int = 1


def test_no_kind_is_broken_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["recipe", "stages"]) is ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert set(stage_kinds()) <= {line.split()[0] for line in lines if line.strip()}
    assert max(map(len, lines)) <= 80


def test_the_docstring_under_a_field_is_its_meaning() -> None:
    assert meaning(Settings, "rate") == "Share of rows that are left out."
    assert meaning(Settings, "bound") == "At most this many, in tokens. Paper section 2.3."
    assert meaning(Settings, "plain") == ""


@pytest.mark.parametrize(
    ("verb", "kind", "text"), [("generate", GenerateJob, GENERATE_EXAMPLE), ("sft", TrainingJob, SFT_EXAMPLE)]
)
def test_help_shows_a_file_that_works(verb: str, kind: type, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Builder(lambda _: OVERRIDE).build(kind, yaml.safe_load(text))
    with pytest.raises(SystemExit):
        run([verb, "--help"])
    said = capsys.readouterr().out
    assert all(line.strip() in said for line in text.splitlines())


def test_the_pages_name_every_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "reference", str(tmp_path)]) is ExitCode.OK
    pages = {Path(line).name: Path(line).read_text() for line in capsys.readouterr().out.split()}
    for kind, cls in stage_kinds().items():
        section = pages["stages.md"].partition(f"## `{kind}`")[2].partition("\n## ")[0]
        assert section, kind
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        assert [
            s.name for s in settings(cls.Config) if not any(row.startswith(f"| `{s.name}` |") for row in rows)
        ] == []
    assert "| `teacher.stand_in.extract_error` | number, 0 or more, at most 1 | `0.02` |" in pages["recipe-file.md"]
    assert "| `seed` | whole number | `0` |" in pages["recipe-file.md"]
    assert [name for name, page in pages.items() if "a finite number" in page] == []
    assert "| `warn_seconds` |" in pages["cluster-file.md"]
    assert "| `training.parallel.tp` |" in pages["training-job.md"]
    assert "| `generate.samples` |" in pages["generate-file.md"]


def test_reasons_to_drop_are_read_from_the_classes() -> None:
    reasons = drop_reasons(stage_kinds()["problems.decontaminate"])
    assert {"in the benchmark, word for word", "in the benchmark, reworded"} <= set(reasons)
    assert {"refused by the engine", "the reply is no verdict of yes or no"} <= set(reasons)
    assert {"wrong answer", "verdict ...", "no boxed answer"} <= set(drop_reasons(stage_kinds()["solutions.filter"]))
    assert {"another forum", "a forum that is left out"} <= set(drop_reasons(stage_kinds()["problems.read_threads"]))
    assert drop_reasons(stage_kinds()["training.sft"]) == []
    elsewhere = {
        "problems.classify": {
            "binary",
            "invalid",
            "multiple-choice",
            "the reply is no verdict of yes or no",
            "the reply did not come to its end",
        },
        "sft.read": {"no ...", "... is not text", "no boxed answer"},
        "sft.select": {"pass rate too high", "no boxed answer"},
        "sft.tokenize": {"no trained token", "input is a prompt in another model's format"},
        "sft.pack": {"longer than a pack", "same id as another sample"},
    }
    for kind, reasons_elsewhere in elsewhere.items():
        assert reasons_elsewhere <= set(drop_reasons(stage_kinds()[kind])), kind


def test_a_number_of_the_paper_names_its_place() -> None:
    setting = Setting("lr", "number", "1", "The highest learning rate. Paper section 5.1.")
    assert (setting.plain_meaning, setting.paper) == ("The highest learning rate.", "section 5.1")

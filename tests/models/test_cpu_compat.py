"""The names that the CPU compatibility replaces are where it looks for them in megatron-core; it knows its releases."""

from __future__ import annotations

import importlib.util
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from nemo_openmath.core.errors import UserError
from nemo_openmath.models import cpu_compat

INSTALLED = cpu_compat.series_of(version("megatron-core"))


@pytest.mark.parametrize("module", INSTALLED.relied_on)
def test_names_have_not_moved(module: str) -> None:
    assert set(cpu_compat._LITERAL_CUDA) <= set(INSTALLED.relied_on)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    for fragment in INSTALLED.relied_on[module]:
        assert fragment in source, f"{module} no longer contains {fragment!r}: look at cpu_compat.py"


def test_the_project_takes_the_series_that_have_a_table_and_no_others() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = next(r for line in project["dependencies"] if (r := Requirement(line)).name == "megatron-core")
    taken = {f"0.{minor}" for minor in range(100) if wanted.specifier.contains(f"0.{minor}.99")}
    assert taken == set(cpu_compat.SERIES)
    assert all(run in wanted.specifier for series in cpu_compat.SERIES.values() for run in series.run)


def test_an_unknown_release_is_refused_with_the_remedy() -> None:
    assert cpu_compat.series_of("0.19.3rc1+nv").run == cpu_compat.SERIES["0.19"].run
    with pytest.raises(
        UserError, match=r"megatron-core 0\.20\.0 .* 0\.16\.1, .*0\.19\.2.*pip install megatron-core==0\.1"
    ):
        cpu_compat.series_of("0.20.0")

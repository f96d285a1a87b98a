"""The names that the CPU compatibility replaces are where it looks for them in megatron-core."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from nemo_openmath.models import cpu_compat


@pytest.mark.parametrize("module", cpu_compat.PATCHED)
def test_patched_names_have_not_moved(module: str) -> None:
    assert set(cpu_compat._LITERAL_CUDA) <= set(cpu_compat.PATCHED)
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text()
    for fragment in cpu_compat.PATCHED[module]:
        assert fragment in source, f"{module} no longer contains {fragment!r}: look at cpu_compat.py"


def test_version_is_the_pinned_one() -> None:
    import megatron.core

    requirement = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.search(rf'"megatron-core=={re.escape(cpu_compat.MEGATRON_VERSION)}"', requirement)
    assert megatron.core.__version__ == cpu_compat.MEGATRON_VERSION

"""What a long work says of itself."""

from __future__ import annotations

import pytest

from nemo_openmath.core import progress as progress_module
from nemo_openmath.core.progress import Progress


def test_the_time_left_is_counted_from_where_the_work_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading took 1,000 s, which say nothing of the steps; what an earlier attempt did took no time now."""
    now, lines = [0.0], list[str]()
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    progress = Progress("work")
    monkeypatch.setattr(progress, "log", lines.append)
    monkeypatch.setattr(progress, "_bar", None)
    now[0] = 1000.0
    progress.begin(10, 2)
    now[0] = 1100.0
    progress.advance(2)
    assert lines == ["4 of 10 after 1100 s, about 300 s left"]

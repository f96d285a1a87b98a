from collections.abc import Iterator

import pytest

from nemo_openmath.grading import GradingPool


@pytest.fixture(scope="session")
def grading() -> Iterator[GradingPool]:
    """One pool for all tests of this folder: its worker takes a while to start."""
    with GradingPool() as pool:
        yield pool

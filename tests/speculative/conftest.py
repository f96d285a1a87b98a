"""The model that drafters are trained for here, and its texts."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_openmath.speculative.texts import Text
from tests.speculative.served import own_texts, qwen2


@pytest.fixture(scope="package")
def base() -> Any:
    return qwen2()


@pytest.fixture(scope="package")
def texts(base: Any) -> list[Text]:
    return own_texts(base)

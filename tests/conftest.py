"""Shared: the demo's tokenizer, trained once a session; no test fails because the machine is slow."""

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from nemo_openmath.chat import ChatTokenizer

settings.register_profile("openmath", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("openmath")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    from nemo_openmath.demo.corpus import documents, recipe_texts
    from nemo_openmath.demo.tokenizer import train_tokenizer

    folder: Path = tmp_path_factory.mktemp("demo-tokenizer")
    texts = [*itertools.islice(documents(0), 400), *recipe_texts(0, 200)]
    return train_tokenizer(texts, folder)

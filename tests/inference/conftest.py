import pytest

from tests.support.models import save_random


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("models") / "tiny-qwen2")

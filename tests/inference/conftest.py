import pytest

from tests.inference import tiny


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("models") / "tiny-qwen2")

"""Which model is meant: a folder with config.json, a name that we know, or the Hugging Face Hub's name of one."""

from __future__ import annotations

import difflib
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import PRESETS, ModelConfig

SAME_SHAPE = {
    "qwen2.5-math-72b": "qwen2.5-72b",
    "qwq-32b": "qwen2.5-32b",
    "limo-qwen-32b": "qwen2.5-32b",
    "openmath-nemotron-1.5b": "qwen2.5-math-1.5b",
    "openmath-nemotron-7b": "qwen2.5-math-7b",
    "openmath-nemotron-14b": "qwen2.5-14b",
    "openmath-nemotron-14b-kaggle": "qwen2.5-14b",
    "openmath-nemotron-32b": "qwen2.5-32b",
}
"""Models that were trained from one that we know: the sizes are the same."""


def model_folder(path: Path) -> Path | None:
    """Return the folder of ``path`` that holds config.json: itself, or ``model`` of a checkpoint; None where there is
    none."""
    return next((folder for folder in (path, path / "model") if (folder / "config.json").is_file()), None)


def known_model(name: str) -> ModelConfig | None:
    """Return the sizes of a model by its name, in any case: ``qwen2.5-14b``, ``Qwen/Qwen2.5-14B-Instruct``.

    Of a path or a Hub's name, the last part counts. None where it is not known.
    """
    word = name.rstrip("/").rpartition("/")[2].lower()
    names = (word, word.removesuffix("-instruct"), word.removesuffix("-base"))
    return next((PRESETS[shape] for n in names if (shape := SAME_SHAPE.get(n, n)) in PRESETS), None)


def unknown_model(name: str) -> UserError:
    """Return the error for a name that is neither a file, a folder with config.json, nor a model that we know."""
    path, known = Path(name), [*PRESETS, *SAME_SHAPE]
    if path.is_dir():
        return UserError("no config.json", file=path, remedy="give a Hugging Face folder, or a recipe or job file")
    near = difflib.get_close_matches(name.rpartition("/")[2].lower(), known, 3, 0.6)
    remedy = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return UserError(
        f"{name!r} is neither a file, a model's folder nor a model that we know",
        remedy=f"{remedy}known: {', '.join(PRESETS)}; of others, give the folder",
    )

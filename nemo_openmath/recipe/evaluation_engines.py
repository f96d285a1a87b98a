"""What the command line of ``openmath evaluate`` says of models, as the sections of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_openmath.core.errors import UserError
from nemo_openmath.inference.http.server_pool import base_url
from nemo_openmath.inference.open import DRAFTER_NAMES, check_drafter
from nemo_openmath.models.devices import check_device

ENGINE_OPTIONS = {
    "seed": "--seed",
    "student.device": "--device",
    "student.dtype": "--dtype",
    "student.slots": "--slots",
    "student.drafter": "--drafter",
    "student.urls": "--server",
    "student.model": "--model",
    "student.api": "--api",
    "sandbox.workers": "--sandbox-workers",
    "grading.workers": "--workers",
}
"""What the command line calls settings of the engine and of what serves it (:func:`.written.write_recipe`)."""
_MODES = ("cot", "tir", "genselect")


def engine_settings(
    model: Path,
    urls: Sequence[str],
    served: str | None,
    *,
    api: str = "completions",
    device: str = "auto",
    dtype: str | None = None,
    slots: int | None = None,
    drafter: str | None = None,
) -> dict[str, Any]:
    """Return the section ``student``: servers, or the model in this process. Raises UserError where what is said does
    not go together, or the folder is none."""
    if not model.is_dir():
        what = "the folder of the model's tokenizer" if urls else "a model folder, or give --server URL --model NAME"
        raise UserError("no such folder", file=model, remedy=f"name {what}")
    if not urls and not (model / "config.json").is_file():
        raise UserError("no model here (config.json is missing)", file=model, remedy="name a Hugging Face directory")
    if urls:
        for url in urls:
            base_url(url)
        if served is None:
            raise UserError("--server is given, and --model is not", remedy="give the name that the server knows")
        if drafter is not None:
            raise UserError("--drafter is of a model in this process", remedy="give it to openmath serve")
        return {"kind": "http", "urls": list(urls), "model": served, "api": api, "tokenizer": str(model.resolve())}
    if served is not None or api != "completions":
        raise UserError("--model and --api are of a server", remedy="give --server, or leave them out")
    if device == "auto":
        device = "cuda" if _has_gpu() else "cpu"
    try:
        check_device(device)
    except UserError as error:
        raise UserError(error.problem, file="--device", remedy=error.remedy) from error
    settings: dict[str, Any] = {"kind": "embedded", "device": device}
    settings["dtype"] = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    if drafter is not None:
        check_drafter(drafter, model)
        settings["drafter"] = drafter if drafter in DRAFTER_NAMES else str(Path(drafter).resolve())
    return settings | ({} if slots is None else {"slots": slots})


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def judge_settings(judge: str, model: str | None, tokenizer: Path | None, urls: Sequence[str]) -> dict[str, Any]:
    """Return the section ``teacher`` of a judge on a server; nothing where it is a folder, or there is none. Raises
    UserError where what is said does not go together."""
    if not judge.startswith(("http://", "https://")):
        if model is not None or tokenizer is not None:
            raise UserError("--judge-model and --judge-tokenizer are of a judge on a server", remedy="give --judge URL")
        if judge and not Path(judge).is_dir():
            raise UserError("no such model folder", file=judge, remedy="give a model folder, or the URL of a server")
        if judge and urls:
            remedy = "serve the judge, too (openmath serve), and give its URL"
            raise UserError("--judge is a folder, and the model is on a server", remedy=remedy)
        return {}
    if model is None or tokenizer is None:
        raise UserError("a judge on a server needs --judge-model and --judge-tokenizer", remedy="give both")
    return {"url": judge, "model": model, "tokenizer": str(tokenizer.resolve())}


def prompt_files(given: Sequence[str]) -> dict[str, str]:
    """Return mode -> prompt file of ``tir=my-prompt.txt``. Raises UserError where it is none."""
    prompts: dict[str, str] = {}
    for text in given:
        mode, _, path = text.partition("=")
        if mode not in _MODES or not path:
            raise UserError(f"--prompt {text!r} is no prompt of a mode", remedy="write it as tir=my-prompt.txt")
        if not Path(path).is_file():
            raise UserError("no such prompt file", file=path, remedy="check the path")
        prompts[mode] = str(Path(path).resolve())
    return prompts

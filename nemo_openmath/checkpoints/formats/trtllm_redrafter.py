"""A ReDrafter beside its model in TensorRT-LLM's legacy checkpoint: for Qwen2, in its later versions.

As TensorRT-LLM's ``examples/redrafter/convert_checkpoint.py`` makes it of a checkpoint of the model: the architecture
is that of model and drafter together, and every rank's file holds its rows of the drafter's matrices besides:

    drafter.layers.N.linear.{weight,bias}   the head's residual blocks
    drafter.lm_head.weight                  the head's last matrix, the vocabulary padded with zeros as the model's
    drafter.rnn_w.weight, drafter.rnn_u.{weight,bias}

An engine computes s1 = W e, then s' = W e + U s + b without an activation (``models/redrafter/drafter.py``), and its
head has a row for every token. So drafters of another recurrence, or of a reduced vocabulary, are refused: rows that
must never be guessed cannot be written into a matrix without a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_openmath.checkpoints.lazy import InMemory, LazyTensor
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.drafters import ReDrafter

_ARCHITECTURES = {"qwen2": "ReDrafterForQWenLM"}  # by the model's type


@dataclass(frozen=True)
class TrtllmDrafter:
    """A drafter that is written beside its model."""

    drafter: ReDrafter
    dtype: torch.dtype
    beams: int

    @classmethod
    def read(
        cls, folder: Path, config: ModelConfig, *, tp: int, pp: int, dtype: torch.dtype, beams: int
    ) -> TrtllmDrafter:
        """Read a drafter for a model. Raises UserError where TensorRT-LLM cannot decode with it."""
        drafter = ReDrafter.load(folder)
        shape = drafter.shape
        retrain = "train one by a stage drafter.train with"
        wide = 2 * shape.hidden % tp == 0 and shape.hidden % tp == 0
        for problem, is_right, remedy in (
            (
                f"is for a model of width {shape.hidden} and {shape.vocab} tokens, this one has "
                f"{config.hidden_size} and {config.vocab_size}",
                (shape.hidden, shape.vocab) == (config.hidden_size, config.vocab_size),
                "give the drafter of this model",
            ),
            (
                f"guesses {shape.draft_vocab} tokens; TensorRT-LLM's head has all {shape.vocab}",
                not shape.draft_vocab,
                f"{retrain} draft_vocab: 0",
            ),
            (
                "has the recurrence silu; TensorRT-LLM computes without an activation, and would draft other tokens",
                shape.recurrence == "linear",
                f"{retrain} recurrence: linear",
            ),
            (
                f"TensorRT-LLM has no ReDrafter for {config.model_type}",
                config.model_type in _ARCHITECTURES,
                "leave --drafter out, or train one with form: eagle3 for its PyTorch backend",
            ),
            ("a drafter goes with one pipeline stage", pp == 1, "leave --pp out"),
            (f"width {shape.hidden} is not divisible by tp = {tp}", wide, "choose another --tp"),
        ):
            if not is_right:
                raise UserError(problem, file=folder, remedy=remedy)
        return cls(drafter, dtype, beams)

    def tensors(self, tp: int, rank: int) -> dict[str, LazyTensor]:
        """Return the tensors of one rank."""
        drafter, stored = self.drafter, dict[str, Tensor]()
        for number in range(drafter.shape.layers):
            for part in ("weight", "bias"):
                stored[f"layers.{number}.linear.{part}"] = drafter.get_parameter(f"lm_head.{number}.linear.{part}")
        missing = -drafter.shape.vocab % tp
        stored["lm_head.weight"] = torch.nn.functional.pad(drafter.output_weight, (0, 0, 0, missing))
        stored |= {name: drafter.get_parameter(name) for name in ("rnn_w.weight", "rnn_u.weight", "rnn_u.bias")}
        return {f"drafter.{name}": self._rows(tensor, tp, rank) for name, tensor in stored.items()}

    def _rows(self, tensor: Tensor, tp: int, rank: int) -> LazyTensor:
        return InMemory(tensor.detach().chunk(tp)[rank].to(self.dtype).contiguous())

    def described(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return the model's config.json as that of model and drafter."""
        shape, quantization = self.drafter.shape, dict(config["quantization"])
        if quantization["exclude_modules"] is not None:
            layers = [f"drafter.layers.{number}" for number in range(shape.layers)]
            linears = [f"{layer}.linear" for layer in layers]
            modules = ["drafter", "drafter.layers", "drafter.lm_head", "drafter.rnn_u", "drafter.rnn_w"]
            quantization["exclude_modules"] = [*quantization["exclude_modules"], *modules, *layers, *linears]
        return config | {
            "architecture": _ARCHITECTURES[config["qwen_type"]],
            "base_model_architecture": config["architecture"],
            "redrafter_num_layers": shape.layers,
            "redrafter_hidden_size": shape.hidden,
            "redrafter_exit_dim": 2 * shape.hidden,
            "redrafter_is_rnn": True,
            "redrafter_num_beams": self.beams,
            "redrafter_draft_len_per_beam": shape.draft_tokens,
            "redrafter_greedy_search": True,
            "quantization": quantization,
        }

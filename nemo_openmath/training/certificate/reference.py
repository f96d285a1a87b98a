"""The model in one process, in fp32: the loss of each position of a pack, whatever its layers are told of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nemo_openmath.data.packs.pack import Pack, samples_of
from nemo_openmath.models.build import PackedGPT, build_model
from nemo_openmath.models.configs import ModelConfig
from nemo_openmath.models.layout import Parallel, Precision
from nemo_openmath.models.packed import PackedBatch, pack_batch, rotary
from nemo_openmath.training.base_model import BaseModel
from nemo_openmath.training.certificate.views import Boundaries, right_view
from nemo_openmath.training.runtime import parallel_state_of
from nemo_openmath.training.sharded_state import load_base

_BLOCK_BYTES = 64 << 20  # of one block of logits


@dataclass(frozen=True)
class TokenLosses:
    """-log p of several labels at each of a pack's T positions, each sample computed alone ([T] fp64)."""

    next: NDArray[np.float64]  # of the pack's next token; the last position has none, and token 0 in its place
    own: NDArray[np.float64]  # of the position's own token
    second: NDArray[np.float64]  # of the token after the next
    zero: NDArray[np.float64]  # of token 0, with which we pad


class ReferenceModel:
    """A model of :class:`PackedGPT`'s layers, run layer by layer, so that each layer can be told something else."""

    def __init__(self, config: ModelConfig, model: PackedGPT):
        self.config, self.model = config, model
        self.num_layers = len(model.decoder.layers)
        tied = model.share_embeddings_and_output_weights
        self._output: Tensor = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight

    def losses(
        self,
        tokens: NDArray[np.int32],
        told: Boundaries | Callable[[int], Boundaries],
        labels: Sequence[NDArray[np.int32]],
        rows: NDArray[np.int64] | None = None,
        rope_theta: float | None = None,
    ) -> list[NDArray[np.float64]]:
        """Return -log p of each of ``labels`` (k arrays [m]) at the positions ``rows`` [m] of ``tokens`` [T]; all T
        where ``rows`` is None.

        ``told``: what all layers are told, or a function of the layer's number (from 0).
        """
        config = self.config if rope_theta is None else self.config.with_changes(rope_theta=rope_theta)
        per_layer = told if callable(told) else lambda _: told
        made: dict[int, PackedBatch] = {}

        def batch_of(layer: int) -> PackedBatch:
            boundaries = per_layer(layer)
            if id(boundaries) not in made:
                made[id(boundaries)] = self._batch(tokens, boundaries, config)
            return made[id(boundaries)]

        with torch.no_grad():
            first = batch_of(0)
            hidden = self.model.embedding(input_ids=first.tokens, position_ids=None)
            for number, layer in enumerate(self.model.decoder.layers):
                hidden, _ = layer(hidden_states=hidden, attention_mask=None, packed_seq_params=batch_of(number))
            hidden = self.model.decoder.final_layernorm(hidden).squeeze(1)
            if rows is not None:
                hidden = hidden.index_select(0, torch.from_numpy(rows).to(hidden.device))
            return self._label_losses(hidden, labels)

    @contextlib.contextmanager
    def without_biases(self) -> Iterator[None]:
        """Within it, the biases of all layers are zero."""
        biases = [value for name, value in self.model.named_parameters() if name.endswith(".bias")]
        before = [value.detach().clone() for value in biases]
        try:
            with torch.no_grad():
                for value in biases:
                    value.zero_()
            yield
        finally:
            with torch.no_grad():
                for value, kept in zip(biases, before, strict=True):
                    value.copy_(kept)

    def _batch(self, tokens: NDArray[np.int32], told: Boundaries, config: ModelConfig) -> PackedBatch:
        device = self._output.device
        everything = np.ones(len(tokens), np.bool_)
        batch = pack_batch(tokens, tokens, everything, told.cu_seqlens.astype(np.int32), config, device=device)
        cos, sin = rotary(torch.from_numpy(told.positions.astype(np.int64)).to(device), config)
        batch.cos, batch.sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return batch

    def _label_losses(self, hidden: Tensor, labels: Sequence[NDArray[np.int32]]) -> list[NDArray[np.float64]]:
        wanted = [torch.from_numpy(part.astype(np.int64)).to(hidden.device) for part in labels]
        out = [np.empty(hidden.shape[0]) for _ in labels]
        size = max(1, _BLOCK_BYTES // (4 * self._output.shape[0]))
        for start in range(0, hidden.shape[0], size):
            block = slice(start, start + size)
            logits = (hidden[block] @ self._output.t()).float()
            total = logits.logsumexp(dim=1)
            for values, part in zip(out, wanted, strict=True):
                at_label = logits.gather(1, part[block].unsqueeze(1)).squeeze(1)
                values[block] = (total - at_label).double().cpu().numpy()
        return out


def alone(model: ReferenceModel, pack: Pack) -> TokenLosses:
    """Return the losses of ``pack``'s positions, each sample run alone, unpacked."""
    wanted = [np.append(pack.tokens[1:], 0), pack.tokens, np.append(pack.tokens[2:], [0, 0])[: len(pack.tokens)]]
    wanted.append(np.zeros_like(pack.tokens))
    parts: list[list[NDArray[np.float64]]] = []
    for sample, start in zip(samples_of(pack), pack.cu_seqlens[:-1].tolist(), strict=True):
        stop = start + len(sample.tokens)
        labels = [array[start:stop].astype(np.int32) for array in wanted]
        parts.append(model.losses(sample.tokens, right_view(sample).told, labels))
    following, own, second, zero = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return TokenLosses(following, own, second, zero)


@contextlib.contextmanager
def reference_model(base: BaseModel, precision: Precision = "fp32") -> Iterator[ReferenceModel]:
    """Yield ``base`` in this process alone. It computes in fp32; with ``precision`` bf16 its weights are rounded to
    bf16 first, as those of a bf16 training are.

    The process must be a world of one: :func:`nemo_openmath.training.certificate.alone.world_of_one`.
    """
    with parallel_state_of(Parallel(), seed=0):
        [model] = build_model(base.config, Parallel(), backend="local")
        load_base(base, [model])
        if precision == "bf16":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(parameter.bfloat16().float())
        model.eval()
        yield ReferenceModel(base.config, model)

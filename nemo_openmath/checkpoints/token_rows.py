"""Rows of the embedding for tokens that a model never saw.

A tokenizer has tokens that no text of the pre-training holds: in Qwen2.5-Coder-0.5B the rows of ``<tool_call>`` and
``</tool_call>`` are the same row, to three digits, as those of 2,450 others. Such a model can neither tell the two
apart nor write one of them: where a short training teaches it to, it writes any of the 2,452. A long one, as the
paper's, pulls the rows apart by itself.

The remedy is to begin with rows that mean something: the mean of the rows of a text's tokens, such as the fence that
the model wrote so far in the tag's place (mean initialisation, Hewitt 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_openmath.chat.tokenizer import ChatTokenizer
from nemo_openmath.checkpoints.checkpoint import lineage, open_checkpoint
from nemo_openmath.checkpoints.formats.hf import EMBEDDING, HEAD
from nemo_openmath.checkpoints.formats.safetensors import write_folder
from nemo_openmath.checkpoints.lazy import LazyTensor
from nemo_openmath.checkpoints.model_files import write_model_files
from nemo_openmath.checkpoints.output import building
from nemo_openmath.core.errors import UserError

_ALIKE, _OTHERS = 0.999, 8  # cosine of two rows that are one, and how many such there are around an untrained one
_PIECE = 16384  # rows that are compared at once


@dataclass(frozen=True, slots=True)
class GivenRows:
    """What was done. ``alike``: untrained token -> how many other rows of the embedding are the same as its own."""

    alike: dict[str, int]
    trained: tuple[str, ...]
    """Tokens that keep their rows, for they are like no others."""


def rows_alike(embedding: LazyTensor, ids: Sequence[int]) -> list[int]:
    """Return for each token how many other rows of the embedding point where its own does (cosine above 0.999)."""
    own = torch.stack([embedding.rows(i, i + 1).full().float().flatten() for i in ids])
    own = torch.nn.functional.normalize(own)
    counts = torch.zeros(len(ids), dtype=torch.long)
    for start in range(0, embedding.shape[0], _PIECE):
        rows = embedding.rows(start, min(start + _PIECE, embedding.shape[0])).full().float()
        counts += (own @ torch.nn.functional.normalize(rows).T > _ALIKE).sum(dim=1)
    return [int(count) - 1 for count in counts]


def unseen(model: str | Path, ids: Sequence[int]) -> dict[int, int]:
    """Return which of these tokens the model never saw, with how many other rows of its embedding are like theirs."""
    listed = list(ids)
    counts = rows_alike(open_checkpoint(model).tensors[EMBEDDING], listed) if listed else []
    return {i: count for i, count in zip(listed, counts, strict=True) if count >= _OTHERS}


def write_token_rows(
    src: str | Path, dst: str | Path, texts: Mapping[str, str], *, into_existing: bool = False
) -> GivenRows:
    """Write the Hugging Face model ``src`` with the rows of untrained tokens set to means. ``texts``: token -> the text
    whose tokens' rows are averaged, in the embedding and in the lm_head. All else is copied.

    Raises UserError where a token is none, or a text is empty.
    """
    source, tokenizer = open_checkpoint(src), ChatTokenizer.load(src, chat=False)
    ids = {token: _id_of(tokenizer, token, Path(src)) for token in texts}
    parts = {token: tokenizer.encode(text) for token, text in texts.items()}
    if empty := next((token for token, listed in parts.items() if not listed), None):
        raise UserError(f"the text for {empty} has no tokens", remedy="give a text that means what the token will")
    counts = unseen(src, list(ids.values()))
    alike = {token: counts[number] for token, number in ids.items() if number in counts}
    tensors = dict(source.tensors)
    for name in (EMBEDDING, HEAD):
        if name in tensors:
            matrix = tensors[name]
            means = {ids[token]: _mean(matrix, parts[token]) for token in alike}
            tensors[name] = _Replaced(matrix, means)
    with building(Path(dst), into_existing=into_existing) as folder:
        write_model_files(source.model_files, folder, dict(source.config))
        write_folder(folder, tensors)
        lineage("checkpoints.token_rows", {"source": source}, tokens=dict(texts)).write(folder)
    return GivenRows(alike, tuple(token for token in texts if token not in alike))


def _id_of(tokenizer: ChatTokenizer, token: str, folder: Path) -> int:
    ids = tokenizer.encode_text(token, tags=True)
    if len(ids) != 1:
        raise UserError(f"{token} is {len(ids)} tokens, not one", file=folder, remedy="name a token of its tokenizer")
    return ids[0]


def _mean(matrix: LazyTensor, ids: Sequence[int]) -> Tensor:
    rows = [matrix.rows(i, i + 1).full().float().flatten() for i in ids]
    return torch.stack(rows).mean(dim=0).to(matrix.dtype)


class _Replaced(LazyTensor):
    """A matrix with other rows in some places."""

    def __init__(self, source: LazyTensor, rows: Mapping[int, Tensor]):
        self.source, self.dtype, self.shape = source, source.dtype, source.shape
        self._rows = dict(rows)

    def read(self, start: int, stop: int) -> Tensor:
        values = self.source.read(start, stop)
        for number, row in self._rows.items():
            first, end = max(start, number * self.row), min(stop, (number + 1) * self.row)
            if first < end:
                values = values.clone()
                values[first - start : end - start] = row[first - number * self.row : end - number * self.row]
        return values

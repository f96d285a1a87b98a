"""The most similar of many texts by the cosine of embeddings of a sentence-transformers model, compared with all.

The model is the user's: a name on the Hugging Face hub, or a folder. It cuts texts at its own length (256 tokens, of
many a model), so two problems that differ behind it are the same to it; it only proposes.

The embeddings of the benchmark are kept in a file beside the stage's records, and read again where texts and model are
the same. Problems are embedded in blocks, which are the same in each run of the same input; between machines the last
digits of a similarity may differ.

Memory: the model, four bytes for each number of an embedding of the benchmark (30 MB for 20,000 texts of 384), and a
matrix of ``BLOCK`` rows with a number for each text of the benchmark (20 MB).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from nemo_openmath.core.errors import MissingExtra, UserError
from nemo_openmath.core.records.lineage import digest_tree
from nemo_openmath.synthesis.problems.benchmark_problems import folded
from nemo_openmath.synthesis.problems.retrievers import OWN, Near, Retriever

BLOCK = 256
_BATCH = 32  # texts in the model at once

Encoder: TypeAlias = Callable[[list[str]], np.ndarray]
"""From texts to their embeddings, [texts, size]."""


def check_embedding(model: str) -> None:
    """Raise UserError where embeddings cannot be made: the package is not installed, or the folder is none."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingExtra("sentence-transformers", "embedding", "retriever: embedding")
    if os.path.isabs(model) and not (Path(model) / "modules.json").is_file():
        raise UserError(
            "no folder of a sentence-transformers model (it has no modules.json)",
            file=model,
            remedy="give a model that SentenceTransformer.save wrote",
        )


def embedding_identity(model: str) -> str:
    """Return what a model is known by: its content where it is a folder, else its name."""
    return f"{Path(model).name} {digest_tree(Path(model))}" if os.path.isabs(model) and Path(model).is_dir() else model


class EmbeddingRetriever(Retriever):
    """Compares embeddings.

    ``encode`` makes them, and is known by ``identity``; ``threshold``: the least cosine; ``cache``: the folder that
    keeps the embeddings of ``texts``. Letters that look alike are one letter, as for the lexical retriever.
    """

    block = BLOCK

    def __init__(self, texts: Sequence[str], *, encode: Encoder, identity: str, threshold: float, cache: Path):
        self._encode, self._threshold = encode, threshold
        texts = [folded(text) for text in texts]
        digest = hashlib.sha256("\0".join([identity, *texts]).encode("utf-8", "replace"))
        self._embeddings = self._kept(texts, cache / f"embeddings-{digest.hexdigest()[:16]}.npy")

    def nearest(self, texts: Sequence[str], count: int) -> list[Near]:
        cosines = self._embed([folded(text) for text in texts]) @ self._embeddings.T
        return [self._best(row, count) for row in cosines]

    def nearest_with(self, text: str, own: str, count: int) -> Near:
        vector, own_vector = self._embed([folded(text), folded(own)])
        cosines = np.append(self._embeddings @ vector, own_vector @ vector)
        last = len(self._embeddings)
        return [(score, OWN if number == last else number) for score, number in self._best(cosines, count)]

    def _best(self, row: np.ndarray, count: int) -> Near:
        least = self._threshold
        if len(row) > count:  # no lower one than the last of the best
            least = max(least, float(np.partition(row, -count)[-count]))
        near = np.flatnonzero(row >= least)
        best = near[np.lexsort((near, -row[near]))[:count]]
        return [(min(float(row[n]), 1.0), int(n)) for n in best]

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings of texts, [texts, size], each of length 1; of a text without one, zeros."""
        embeddings = np.asarray(self._encode(list(texts)), np.float32)
        lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
        if not np.isfinite(lengths).all():
            raise UserError("an embedding is not finite", remedy="use another embedding_model")
        return embeddings / np.maximum(lengths, 1e-12)

    def _kept(self, texts: Sequence[str], file: Path) -> np.ndarray:
        if (embeddings := _stored(file)) is not None and len(embeddings) == len(texts):
            return embeddings
        embeddings = np.concatenate([self._embed(texts[at : at + BLOCK]) for at in range(0, len(texts), BLOCK)])
        for other in file.parent.glob("embeddings-*.npy"):
            other.unlink(missing_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as stream:
            np.save(stream, embeddings)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
        return embeddings


def _stored(file: Path) -> np.ndarray | None:
    """Return the embeddings of a file; None where there is none, or a part of one."""
    try:
        embeddings: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return embeddings if embeddings.ndim == 2 else None


def load_encoder(model: str) -> Encoder:
    """Return the encoder of a sentence-transformers model. Raises UserError where there is none."""
    check_embedding(model)
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

    try:
        loaded = SentenceTransformer(model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the embedding model cannot be loaded ({error})",
            file=model,
            remedy="give the folder of a sentence-transformers model, or a name that can be downloaded here",
        ) from error
    return partial(loaded.encode, batch_size=_BATCH, convert_to_numpy=True, show_progress_bar=False)

"""Vectorised sampling: every row has its own temperature, top-k, top-p, min-p and its own random numbers.

The distribution of a row is, in this order (transformers' order): softmax of logits / temperature; the ``top_k`` most
probable tokens; of these the fewest whose renormalised mass reaches ``top_p``; of these the ones at least ``min_p``
times as probable as the most probable one. Tokens tied with the last one kept are kept too. The token is the inverse
of the cumulative distribution, in vocabulary order, at a uniform number that depends on (seed, position) alone; no
operation mixes rows, so a request draws the same tokens in any batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CANDIDATES = 256  # how many of the most probable tokens are ordered first; rarely are more needed
SORT_WHOLE = 4096  # up to this vocabulary numpy's vectorised sort of everything is the fastest way


@dataclass(frozen=True, slots=True)
class RowSampling:
    """Parameters of the rows of a batch, each an array [rows]."""

    temperature: np.ndarray  # float32; 0: greedy
    top_p: np.ndarray  # float32
    top_k: np.ndarray  # int64; 0: off
    min_p: np.ndarray  # float32


def uniforms(seed: int, n: int) -> np.ndarray:
    """Return the first n uniform numbers in [0, 1) of a request: Philox, keyed by the seed (mod 2^63, as servers take
    it)."""
    return np.random.Generator(np.random.Philox(key=seed % 2**63)).random(n)


def greedy(logits: Tensor) -> np.ndarray:
    """Return the most probable token of each row, the first of equal ones [rows]."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return logits.numpy().argmax(-1)  # an order of magnitude faster than torch's on small rows
    return logits.argmax(-1).cpu().numpy()


def sample(logits: Tensor, rows: RowSampling, u: np.ndarray) -> np.ndarray:
    """Draw one token for each row of ``logits`` [rows, vocab] with the uniform numbers ``u`` [rows]."""
    tokens = greedy(logits)
    hot = np.flatnonzero(rows.temperature > 0)
    if not len(hot):
        return tokens
    if len(hot) < len(tokens):
        logits = logits[torch.from_numpy(hot).to(logits.device)]
    temperature = torch.from_numpy(rows.temperature[hot]).to(logits.device)
    probs = torch.softmax(logits.float().div(temperature.unsqueeze(1)), -1)
    most = probs.amax(-1).cpu().numpy()
    # where the most probable token alone is the nucleus, the draw is decided: it is the greedy one
    open_ = np.flatnonzero((most < rows.top_p[hot]) & (rows.top_k[hot] != 1) & (rows.min_p[hot] < 1))
    if not len(open_):
        return tokens
    if len(open_) < len(hot):
        probs, most, hot = probs[torch.from_numpy(open_).to(probs.device)], most[open_], hot[open_]
    least = _least_kept(probs, most, rows.top_p[hot], rows.top_k[hot], rows.min_p[hot])
    if least.any():
        probs = probs.masked_fill(probs < torch.from_numpy(least).to(probs.device).unsqueeze(1), 0.0)
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    target = (torch.from_numpy(u[hot]).to(total.device) * total).minimum(torch.nextafter(total, total.new_zeros(())))
    tokens[hot] = (cumulative <= target.unsqueeze(1)).sum(-1).cpu().numpy()
    return tokens


def sample_on_device(logits: Tensor, rows: RowSampling, u: np.ndarray) -> np.ndarray:
    """Draw as :func:`sample` does, with all decisions on the device of ``logits``.

    There is one transfer there and one back, each of a few numbers a row; where a row's nucleus is not among the
    candidates, a second draw looks at the whole vocabulary.
    """
    if not (rows.temperature > 0).any():
        return greedy(logits)
    columns = np.stack([rows.temperature, rows.top_p, rows.top_k, rows.min_p, u]).astype(np.float64)
    settings = torch.from_numpy(columns).to(logits.device)
    tokens, unsure = _draw(logits, settings, CANDIDATES).cpu().numpy()
    if unsure.any():
        tokens = _draw(logits, settings, logits.shape[1])[0].cpu().numpy()
    return tokens


def _draw(logits: Tensor, settings: Tensor, candidates: int) -> Tensor:
    """Return the tokens of the rows, and 1 where more than the candidates may belong to the nucleus: int64 [2, rows].

    ``settings``: temperature, top_p, top_k, min_p and uniform number of each row, float64 [5, rows].
    """
    temperature, top_p, top_k, min_p, u = settings
    vocab = logits.shape[1]
    n = min(candidates, vocab)
    hot = temperature > 0
    probs = torch.softmax(logits.float().div(torch.where(hot, temperature, 1.0).float().unsqueeze(1)), -1)
    ordered = torch.topk(probs, n).values
    most = ordered[:, 0]
    mass = ordered.cumsum(-1, dtype=torch.float64)
    by_k, by_p = top_k > 0, top_p < 1
    k = torch.where(by_k, top_k, vocab).long().clamp(max=vocab)
    last_k = k.clamp(max=n) - 1
    whole = torch.where(by_k, _at(mass, last_k), 1.0)
    last_kept = torch.minimum((mass < (top_p * whole).unsqueeze(1)).sum(-1), last_k)
    cut = by_p | (by_k & (k < vocab))
    at_end = last_kept >= n - 1  # of the candidates: the cut may fall beyond them
    unsure = cut & (n < vocab) & ((k > n) | at_end) & (at_end | (top_k > n))
    least = torch.where(cut, torch.where(by_p, _at(ordered, last_kept), _at(ordered, last_k)), 0.0)
    least = torch.maximum(least, min_p.float() * most)
    cumulative = probs.masked_fill(probs < least.unsqueeze(1), 0.0).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    target = (u * total).minimum(torch.nextafter(total, total.new_zeros(())))
    drawn = (cumulative <= target.unsqueeze(1)).sum(-1)
    # where the most probable token alone is the nucleus, the draw is decided: it is the greedy one
    is_open = hot & (most < top_p) & (top_k != 1) & (min_p < 1)
    return torch.stack([torch.where(is_open, drawn, logits.argmax(-1)), (unsure & is_open).long()])


def _at(values: Tensor, column: Tensor) -> Tensor:
    """values[i, column[i]] for each row i."""
    return values.gather(1, column.unsqueeze(1)).squeeze(1)


def logprobs(logits: Tensor, tokens: np.ndarray) -> np.ndarray:
    """Return the natural-log probability, at temperature 1, of one token of each row [rows]."""
    logits = logits.float()
    chosen = logits.gather(1, torch.from_numpy(tokens).to(logits.device).unsqueeze(1)).squeeze(1)
    return (chosen - logits.logsumexp(-1)).cpu().numpy()


def _least_kept(probs: Tensor, most: np.ndarray, top_p: np.ndarray, top_k: np.ndarray, min_p: np.ndarray) -> np.ndarray:
    """Probability of the least probable token that each row may draw [rows], float32."""
    least = np.zeros(len(most), np.float32)
    vocab = probs.shape[1]
    cut = np.flatnonzero((top_p < 1) | ((top_k > 0) & (top_k < vocab)))
    if len(cut):
        some = probs if len(cut) == len(most) else probs[torch.from_numpy(cut).to(probs.device)]
        least[cut], unsure = _nucleus(_ordered(some, CANDIDATES), vocab, top_p[cut], top_k[cut])
        if unsure.any():
            cut = cut[unsure]
            some = probs[torch.from_numpy(cut).to(probs.device)]
            least[cut], _ = _nucleus(_ordered(some, vocab), vocab, top_p[cut], top_k[cut])
    return np.maximum(least, min_p * most)


def _ordered(probs: Tensor, n: int) -> np.ndarray:
    """The n greatest of each row, descending; all of them where that costs no more."""
    vocab = probs.shape[1]
    if probs.device.type == "cpu" and (vocab <= SORT_WHOLE or n >= vocab):
        return np.sort(probs.numpy(), -1)[:, ::-1]
    return torch.topk(probs, min(n, vocab)).values.cpu().numpy()


def _nucleus(ordered: np.ndarray, vocab: int, top_p: np.ndarray, top_k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least kept probability of each row, and whether more than these candidates may be kept."""
    n = ordered.shape[1]
    row = np.arange(len(ordered))
    mass = ordered.cumsum(-1, dtype=np.float64)
    k = np.where(top_k > 0, np.minimum(top_k, vocab), vocab)
    last_k = np.minimum(k, n) - 1
    whole = np.where(top_k > 0, mass[row, last_k], 1.0)
    last_kept = np.minimum((mass < (top_p * whole)[:, None]).sum(-1), last_k)
    # the last candidate may not be the last kept token if the cut falls beyond it
    unsure = (n < vocab) & ((k > n) | (last_kept >= n - 1)) & ((last_kept >= n - 1) | (top_k > n))
    return np.where(top_p < 1, ordered[row, last_kept], ordered[row, last_k]), unsure

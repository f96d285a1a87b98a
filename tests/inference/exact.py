"""The distribution that tokens are drawn from, written down a second time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from nemo_openmath.core.engine import Sampling

Ids = tuple[int, ...]


def exact(logits: np.ndarray, temperature: float, top_p: float, top_k: int, min_p: float) -> np.ndarray:
    """Return the probabilities [vocab] of the next token, decided token by token."""
    p = np.exp((logits - logits.max()) / temperature).astype(np.float64)
    order = np.argsort(-p)
    keep = order[:top_k] if top_k else order
    q = p[keep] / p[keep].sum()
    kept, mass = [], 0.0
    for token, probability in zip(keep, q, strict=True):
        if mass >= top_p:
            break
        kept.append(token)
        mass += probability
    kept = [t for t in kept if p[t] >= min_p * p.max()]
    result = np.zeros(len(p))
    result[kept] = p[kept] / p[kept].sum()
    return result


def all_continuations(model: Path, prompt: Ids, sampling: Sampling) -> dict[Ids, float]:
    """Return the probability of each continuation of ``max_tokens`` tokens, by transformers and :func:`exact`."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model).eval()
    level: dict[Ids, float] = {(): 1.0}
    for _ in range(sampling.max_tokens):
        with torch.no_grad():
            logits = reference(torch.tensor([[*prompt, *ids] for ids in level])).logits[:, -1].numpy()
        level = {
            (*ids, int(token)): p * q[token]
            for (ids, p), row in zip(level.items(), logits, strict=True)
            for q in [exact(row, sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)]
            for token in np.flatnonzero(q)
        }
    return level


def chi_square(drawn: Mapping[Ids, int], expected: Mapping[Ids, float]) -> float:
    """Return the probability of draws that are at least as far from the ``expected`` probabilities; 0 where something
    was drawn that cannot be. What is rarer than five draws counts together."""
    from scipy.stats import chisquare

    if not drawn.keys() <= expected.keys():
        return 0.0
    total = sum(drawn.values())
    common = [key for key, p in expected.items() if p * total >= 5]
    observed, wanted = [drawn.get(key, 0) for key in common], [expected[key] * total for key in common]
    rest = total - sum(wanted)
    if rest >= 5:
        observed.append(total - sum(observed))
        wanted.append(rest)
    scale = sum(observed) / sum(wanted)
    return float(chisquare(observed, [scale * w for w in wanted]).pvalue)

"""ReDrafter (arXiv 2403.09919): drafts several tokens from one hidden state of the model it serves.

The model's last hidden state h at position t (the input of its own head) says token t+1. The drafter reads that token
and guesses on, with a state s that starts as zeros and one head for all steps:

    position        t          t+1            t+2            t+3
    token           known      model's        draft 1        draft 2
    state                      s1 = f(e(t+1)) s2 = f(e(t+2)) ...          s' = silu(W e + U s + b), s0 = 0
    guess           t+1 by h   t+2 by [h; s1] t+3 by [h; s2] ...          head([h; s])

Embeddings e are the served model's own and are not kept here.

TensorRT-LLM's engines (0.18 to 1.2, models/redrafter/drafter.py) leave the activation out, and the bias in the first
step: s1 = W e. A drafter for them is trained with ``recurrence`` linear, whose b stays 0; then both are one.

With a reduced vocabulary the head's last matrix has a row for each of ``draft_ids`` alone, the tokens that the served
model writes most. A token outside them is never guessed, and what the served model says is not changed by that.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.models.drafter_shape import ARCHITECTURE, TRAINED, DrafterShape
from nemo_openmath.models.tensor_files import save_tensors

__all__ = ["DrafterShape", "ReDrafter", "ResidualBlock", "embedding_digest"]

TENSORS = "model.safetensors"


def embedding_digest(embedding: Tensor) -> str:
    """Return a digest of some rows of a model's embeddings (vocab, hidden), in bfloat16: the same for a model in
    float32 and in bfloat16."""
    rows = embedding[:: max(1, len(embedding) // 256)].detach().to(torch.bfloat16)
    return hashlib.sha256(rows.contiguous().view(torch.int16).cpu().numpy().tobytes()).hexdigest()[:16]


class ResidualBlock(nn.Module):
    """Computes x + silu(L x)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + silu(self.linear(x))


class ReDrafter(nn.Module):
    """The drafter of one model. It computes in its parameters' dtype; all tensors may have any leading dimensions.

    ``draft_ids`` (draft_vocab,): int64, which token each row of the head guesses, ascending; None: row i guesses i.
    """

    draft_ids: Tensor | None

    def __init__(self, shape: DrafterShape):
        super().__init__()
        self.shape = shape
        width = 2 * shape.hidden
        self.rnn_w = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.rnn_u = nn.Linear(shape.hidden, shape.hidden)
        if shape.recurrence == "linear":
            self.rnn_u.bias.requires_grad_(False).zero_()
        self.lm_head = nn.Sequential(
            *(ResidualBlock(width) for _ in range(shape.layers)), nn.Linear(width, shape.head_rows, bias=False)
        )
        self.register_buffer("draft_ids", torch.arange(shape.draft_vocab) if shape.draft_vocab else None)

    def tokens(self, rows: Tensor) -> Tensor:
        """Return the tokens that ``rows`` of the head guess."""
        return rows if self.draft_ids is None else self.draft_ids[rows]

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the rows of the head that guess ``tokens``; -1 for those that it cannot guess."""
        if self.draft_ids is None:
            return tokens
        rows = torch.searchsorted(self.draft_ids, tokens).clamp(max=len(self.draft_ids) - 1)
        return torch.where(self.draft_ids[rows] == tokens, rows, -1)

    def advance(self, state: Tensor, embedding: Tensor) -> Tensor:
        """Return the state (..., hidden) after reading one more token's embedding (..., hidden)."""
        read = self.rnn_w(embedding) + self.rnn_u(state)
        return read if self.shape.recurrence == "linear" else silu(read)

    def features(self, hidden: Tensor, state: Tensor) -> Tensor:
        """Return what the head's last matrix is applied to (..., 2 hidden), from the served model's hidden state and
        the drafter's (..., hidden)."""
        return self.lm_head[:-1](torch.cat([hidden, state], dim=-1))

    @property
    def blocks(self) -> list[ResidualBlock]:
        """The head's residual blocks."""
        return [block for block in self.lm_head if isinstance(block, ResidualBlock)]

    @property
    def output_weight(self) -> Tensor:
        """The head's last matrix (head_rows, 2 hidden)."""
        last = self.lm_head[-1]
        assert isinstance(last, nn.Linear)
        return last.weight

    def logits(self, hidden: Tensor, state: Tensor) -> Tensor:
        """Return the logits (..., head_rows) of the token after the last one read, from the served model's hidden state
        and the drafter's (..., hidden)."""
        return linear(self.features(hidden, state), self.output_weight)

    @torch.no_grad()
    def beams(self, hidden: Tensor, token: int, embeddings: Tensor, length: int, width: int) -> list[list[int]]:
        """Return ``width`` continuations of ``length`` tokens by beam search, the likeliest first; each begins with
        ``token``.

        ``hidden`` (hidden,) is the state that ``token`` was decided from, ``embeddings`` (vocab, hidden) the served
        model's. Where the vocabulary leaves fewer continuations than ``width``, those are all.
        """
        beams = torch.tensor([[token]], device=hidden.device)
        scores = torch.zeros(1, device=hidden.device)
        state = torch.zeros_like(hidden)[None]
        for _ in range(length):
            state = self.advance(state, embeddings[beams[:, -1]].to(hidden.dtype))
            logits = self.logits(hidden.expand_as(state), state).float().log_softmax(-1)
            all_scores = (scores[:, None] + logits).flatten()
            scores, best = all_scores.topk(min(width, all_scores.numel()))
            parent, last = best // logits.shape[-1], self.tokens(best % logits.shape[-1])
            beams, state = torch.cat([beams[parent], last[:, None]], dim=1), state[parent]
        return beams.tolist()

    def is_for(self, embedding: Tensor) -> bool:
        """Return whether a model with this ``embedding`` (vocab, hidden) is the one that the drafter was trained for,
        as far as that is known."""
        return not self.shape.model or self.shape.model == embedding_digest(embedding)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` into an existing folder."""
        save_tensors(self.state_dict(), folder / TENSORS)
        config = {"architectures": [ARCHITECTURE], **asdict(self.shape), TRAINED: self.shape.draft_tokens}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ReDrafter:
        """Read a drafter from its folder. Raises UserError where the folder holds none or its config.json asks for more
        guesses than it was trained for, DamagedFile where its tensors are not those of its config.json."""
        shape = DrafterShape.read(folder)
        drafter = cls(shape)
        if not (folder / TENSORS).is_file():
            raise UserError(
                "is missing", file=folder / TENSORS, remedy="give the whole output of a stage drafter.train"
            )
        try:
            drafter.load_state_dict(load_file(folder / TENSORS))
        except Exception as error:  # torch's own lists every name
            reason = str(error).strip().splitlines()[0][:200]
            raise DamagedFile(folder / TENSORS, f"not the tensors of its config.json ({reason})") from error
        if not all(bool(tensor.isfinite().all()) for tensor in drafter.parameters()):
            raise DamagedFile(folder / TENSORS, "a weight is not finite")
        if shape.recurrence == "linear" and drafter.rnn_u.bias.any():
            raise DamagedFile(folder / TENSORS, "rnn_u.bias is not 0, and the recurrence is linear")
        ids = drafter.draft_ids
        if ids is not None and (not (ids.diff() > 0).all() or int(ids[0]) < 0 or int(ids[-1]) >= shape.vocab):
            raise DamagedFile(folder / TENSORS, "draft_ids are not ascending tokens of the vocabulary")
        return drafter.eval()

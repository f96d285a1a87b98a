"""ReDrafter's loss, how it begins, and what it guesses (arXiv 2403.09919).

At every position the drafter reads the next i+1 tokens of the text and guesses the one after them, from that
position's hidden state: the loss is the sum over i < draft_tokens of the mean cross-entropy of these guesses with what
the model says there, over the tokens that the model itself wrote (prompts and program output are never drafted). What
it says is all its probabilities, as in the paper's distillation: a text holds only the token that was drawn.

Logits are there for a block of rows at a time (models/loss.py), and a guess is differentiated before the next one is
made. So a step takes the memory of one guess's features, and not of ``draft_tokens`` times tokens x vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_openmath.models.drafters import DrafterShape, ReDrafter, embedding_digest
from nemo_openmath.speculative.frozen import Batch, embed, head_of, last_states
from nemo_openmath.speculative.kind import StepLoss
from nemo_openmath.speculative.settings import DrafterSettings
from nemo_openmath.speculative.soft_loss import soft_cross_entropy
from nemo_openmath.speculative.texts import Text, frequent_tokens

_CHUNK = 1024  # positions that are guessed from at once
_RIDGE = 1e-4  # of the mean square of what is read


class RedrafterTraining:
    """ReDrafter as :func:`~nemo_openmath.speculative.train.train` trains it."""

    def __init__(self, base: Any):
        self.base = base

    def new(self, texts: Sequence[Text], settings: DrafterSettings, read: Iterable[tuple[Batch, Tensor]]) -> ReDrafter:
        """Return a drafter that begins as the best linear one; its recurrence is random, from torch's generator.

        - What is read of an embedding is scaled to be of the size of the state. Embeddings of large models are small
          (0.015 in Qwen2.5-0.5B), and their states would hardly be there: of its next tokens 0.34 of 3 were guessed
          after three epochs over 80 solutions, and 0.69 after one so.
        - The residual blocks change nothing, and the last matrix is the model's head applied to what least squares
          makes of the model's state and the drafter's: the state of the model one token later.
        """
        config = self.base.config
        ids = frequent_tokens(texts, settings.draft_vocab, config.vocab_size)
        shape = DrafterShape(
            config.hidden_size,
            config.vocab_size,
            settings.layers,
            settings.draft_tokens,
            0 if ids is None else len(ids),
            settings.recurrence,
            embedding_digest(self.base.get_input_embeddings().weight),
        )
        drafter = ReDrafter(shape)
        if ids is not None:
            drafter.draft_ids = torch.from_numpy(ids)
        drafter.to(self.base.device)
        with torch.no_grad():
            for block in drafter.blocks:
                block.linear.weight.zero_()
                block.linear.bias.zero_()
            drafter.rnn_w.weight /= self._read_size(texts)
            drafter.output_weight.copy_(head_of(self.base, drafter.draft_ids) @ self._next_state(drafter, read))
        return drafter

    def _read_size(self, texts: Sequence[Text]) -> Tensor:
        """Return the standard deviation of what a new W makes of the embeddings of the tokens that the model wrote."""
        written = np.concatenate([text.ids[text.loss_mask] for text in texts])
        count = torch.from_numpy(np.bincount(written)).to(self.base.device)
        table = self.base.get_input_embeddings().weight[: len(count)]
        # entries of a new W are uniform within 1 / sqrt(hidden): their variance is a third of 1 / hidden
        return ((table.float().square().mean(1) * count).sum() / count.sum() / 3).sqrt()

    def _next_state(self, drafter: ReDrafter, read: Iterable[tuple[Batch, Tensor]]) -> Tensor:
        """Return the matrix (hidden, 2 hidden) that makes of the model's state at t and the drafter's behind token t+1
        the model's state at t+1 with the least squared error; with a constant that is left out, and a small ridge."""
        width = 2 * drafter.shape.hidden
        gram = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=self.base.device)
        product = gram.new_zeros(width + 1, drafter.shape.hidden)
        for batch, hidden in read:
            state = drafter.advance(torch.zeros_like(hidden[:, 1:]), embed(self.base, batch.ids)[:, 1:])
            own = batch.loss_mask[:, 1:]
            before = torch.cat([hidden[:, :-1], state, torch.ones_like(state[..., :1])], dim=-1)[own]
            gram += (before.t() @ before).double()
            product += (before.t() @ hidden[:, 1:][own]).double()
        gram.diagonal().add_(_RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
        return torch.linalg.solve(gram, product)[:-1].t().float()

    def states(self, ids: Tensor) -> Tensor:
        """Return what is read of the frozen model (rows, tokens, hidden)."""
        return last_states(self.base, ids)

    def add_gradients(self, drafter: ReDrafter, batch: Batch, hidden: Tensor) -> StepLoss:
        """Return the loss of a batch and add its gradients to those of the drafter's parameters.

        The loss is the sum over the lookaheads of the mean cross-entropy with the model's probabilities, where the text
        goes on with a token that the drafter can guess; a lookahead without any adds nothing.
        """
        teacher = head_of(self.base, drafter.draft_ids)
        ids, embedded = batch.ids, embed(self.base, batch.ids)
        rows = drafter.rows(ids)
        state = torch.zeros_like(hidden)
        loss, targets, outside = hidden.new_zeros(()), 0, 0
        # of each lookahead: the drafter's states where a token is guessed, and the loss's gradient there
        states: list[Tensor] = []
        gradients: list[Tensor] = []
        for ahead in range(min(drafter.shape.draft_tokens, ids.shape[1] - 2)):
            # the state at t has read e(t+1) .. e(t+ahead+1); the guess is token t+ahead+2
            state = drafter.advance(state[:, :-1], embedded[:, ahead + 1 :])
            written, target_rows = batch.loss_mask[:, ahead + 2 :], rows[:, ahead + 2 :]
            is_target = written & (target_rows >= 0)
            count = int(is_target.sum())
            targets, outside = targets + count, outside + int(written.sum()) - count
            if count:
                guessing = state[:, :-1][is_target]
                leaf = guessing.detach().requires_grad_()
                features = drafter.features(hidden[:, : -(ahead + 2)][is_target], leaf)
                says = hidden[:, ahead + 1 : -1][is_target]
                guess_loss = soft_cross_entropy(features, drafter.output_weight, says, teacher) / count
                guess_loss.backward()
                assert leaf.grad is not None
                states.append(guessing)
                gradients.append(leaf.grad)
                loss += guess_loss.detach()
        if states:
            torch.autograd.backward(states, gradients)
        return StepLoss(loss.item(), targets, outside)

    @torch.no_grad()
    def drafts(self, drafter: ReDrafter, ids: Tensor, hidden: Tensor, *, chunk: int = _CHUNK) -> list[int]:
        """Return how many drafts in a row, made from each token (but the last) with one beam, equal the text (tokens,).

        ``hidden`` (tokens, hidden). For a text decoded greedily these drafts are those of
        :func:`~nemo_openmath.speculative.decode.speculate`; for a sampled one, what greedy drafts would have been.
        """
        counts: list[Tensor] = []
        for start in range(0, len(ids) - 1, chunk):
            seen = torch.arange(start, min(start + chunk, len(ids) - 1), device=ids.device)
            state, embedding = torch.zeros_like(hidden[seen]), embed(self.base, ids[seen + 1])
            equal = torch.zeros(len(seen), drafter.shape.draft_tokens, dtype=torch.bool, device=ids.device)
            for ahead in range(drafter.shape.draft_tokens):
                state = drafter.advance(state, embedding)
                guess = drafter.tokens(drafter.logits(hidden[seen], state).argmax(-1))
                target = seen + ahead + 2
                equal[:, ahead] = (target < len(ids)) & (guess == ids[target.clamp(max=len(ids) - 1)])
                embedding = embed(self.base, guess)
            counts.append(equal.cumprod(1).sum(1))
        return torch.cat(counts).tolist() if counts else []

"""ReDrafter's loss, and what it guesses (arXiv 2403.09919).

At every position the drafter reads the next i+1 tokens of the text and guesses the one after them, from that
position's hidden state: the loss is the sum over i < draft_tokens of the mean cross-entropy of these guesses, over
the tokens that the model itself wrote (prompts and program output are never drafted).

Logits are there for a block of rows at a time (models/loss.py), and a guess is differentiated before the next one is
made. So a step takes the memory of one guess's features, and not of ``draft_tokens`` times tokens x vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nemo_openmath.models.drafters import DrafterShape, ReDrafter
from nemo_openmath.models.loss import linear_cross_entropy
from nemo_openmath.speculative.frozen import Batch, embed, last_states
from nemo_openmath.speculative.kind import StepLoss
from nemo_openmath.speculative.settings import DrafterSettings
from nemo_openmath.speculative.texts import Text, frequent_tokens

_CHUNK = 1024  # positions that are guessed from at once


class RedrafterTraining:
    """ReDrafter as :func:`~nemo_openmath.speculative.train.train` trains it."""

    def __init__(self, base: Any):
        self.base = base

    def new(self, texts: Sequence[Text], settings: DrafterSettings) -> ReDrafter:
        """Return a drafter whose head begins as the model's own, applied to the drafter's state: the residual blocks
        change nothing, and the last matrix is [0; the model's head]. The recurrence is random, from torch's generator.

        So tokens that are alike for the model are so for the drafter from the start. With random heads, 200 texts of
        the smoke recipe's student gave 0.71 accepted drafts a step, with these 0.77."""
        config = self.base.config
        ids = frequent_tokens(texts, settings.draft_vocab, config.vocab_size)
        shape = DrafterShape(
            config.hidden_size,
            config.vocab_size,
            settings.layers,
            settings.draft_tokens,
            0 if ids is None else len(ids),
            settings.recurrence,
        )
        drafter = ReDrafter(shape)
        if ids is not None:
            drafter.draft_ids = torch.from_numpy(ids)
        with torch.no_grad():
            for block in drafter.blocks:
                block.linear.weight.zero_()
                block.linear.bias.zero_()
            head: Tensor = self.base.get_output_embeddings().weight
            drafter.output_weight[:, : shape.hidden] = 0
            drafter.output_weight[:, shape.hidden :] = (
                head if ids is None else head[torch.from_numpy(ids).to(head.device)]
            )
        return drafter

    def states(self, ids: Tensor) -> Tensor:
        """Return what is read of the frozen model (rows, tokens, hidden)."""
        return last_states(self.base, ids)

    def add_gradients(self, drafter: ReDrafter, batch: Batch, hidden: Tensor) -> StepLoss:
        """Return the loss of a batch and add its gradients to those of the drafter's parameters.

        The loss is the sum over the lookaheads of the mean cross-entropy over the target tokens that the drafter can
        guess; a lookahead without any adds nothing.
        """
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
                guess_loss = linear_cross_entropy(features, drafter.output_weight, target_rows[is_target]) / count
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

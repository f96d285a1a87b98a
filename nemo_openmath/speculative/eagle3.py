"""EAGLE-3's loss, and what it guesses (arXiv 2503.01840).

A head that is trained on the model's hidden states alone drifts when it reads its own output. So it is unrolled while
it is trained, as it will be used (training-time test): from every position t of a text, the root, it goes on for
``draft_tokens`` steps.

    step 0 at root t   reads the model's states at t, beside e(t+1), and guesses t+2
    step j at root t   reads its own output of step j-1 at t, beside e(t+j+1), and guesses t+j+2
    attention          sees step 0 of all roots up to t, which stand for the text, and its own steps 1..j at t

The loss is the cross-entropy against what the model itself says there, over the tokens that the head can guess; step j
counts 0.8^j. It is the mean over the tokens that the model wrote and the head can guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nemo_openmath.models.drafter_shape import Eagle3Shape, refuse_few_layers
from nemo_openmath.models.eagle3 import Eagle3
from nemo_openmath.speculative.frozen import Batch, embed, head_of, layer_states
from nemo_openmath.speculative.kind import StepLoss
from nemo_openmath.speculative.settings import DrafterSettings
from nemo_openmath.speculative.soft_loss import soft_cross_entropy
from nemo_openmath.speculative.texts import Text, frequent_tokens

_STEP_WEIGHT = 0.8  # of each step against the one before
_QUERIES = 256  # whose attention is there at once


class Eagle3Training:
    """EAGLE-3 as :func:`~nemo_openmath.speculative.train.train` trains it."""

    def __init__(self, base: Any):
        refuse_few_layers(base.config.num_hidden_layers)
        self.base = base

    def new(self, texts: Sequence[Text], settings: DrafterSettings, read: Iterable[tuple[Batch, Tensor]]) -> Eagle3:
        """Return a head with random weights, but those of its norm and its last matrix: they are the model's own."""
        ids = frequent_tokens(texts, settings.draft_vocab, self.base.config.vocab_size)
        head = Eagle3(_shape(self.base.config, settings.draft_tokens, 0 if ids is None else len(ids)))
        if ids is not None:
            head.set_draft_ids(torch.from_numpy(ids))
        with torch.no_grad():
            head.lm_head.weight.copy_(head_of(self.base, _draft_ids(head)))
            head.norm.weight.copy_(self.base.model.norm.weight)
        return head

    def states(self, ids: Tensor) -> Tensor:
        """Return the inputs of three layers and the last hidden state (rows, tokens, 4 hidden)."""
        return layer_states(self.base, ids, _shape(self.base.config, 1, 0).read_layers)

    def add_gradients(self, drafter: Eagle3, batch: Batch, states: Tensor) -> StepLoss:
        """Return the loss of a batch and add its gradients to those of the head's parameters."""
        width, teacher = drafter.shape.hidden, head_of(self.base, _draft_ids(drafter))
        last, rows, embedded = states[..., 3 * width :], drafter.rows(batch.ids), embed(self.base, batch.ids)
        chain = Unrolled(drafter, states[..., : 3 * width])
        loss, targets, outside = states.new_zeros(()), 0, 0
        features: list[Tensor] = []
        gradients: list[Tensor] = []
        for step in range(min(drafter.shape.draft_tokens, batch.ids.shape[1] - 2)):
            roots = batch.ids.shape[1] - step - 2
            output = chain.step(embedded[:, step + 1 : step + 1 + roots])
            written = batch.loss_mask[:, step + 2 :]
            is_target = written & (rows[:, step + 2 :] >= 0)
            count = int(is_target.sum())
            targets, outside = targets + count, outside + int(written.sum()) - count
            if count:
                made = drafter.features(output)[is_target]
                leaf, says = made.detach().requires_grad_(), last[:, step + 1 : step + 1 + roots][is_target]
                step_loss = soft_cross_entropy(leaf, drafter.lm_head.weight, says, teacher)
                step_loss = step_loss * (_STEP_WEIGHT**step / count)
                step_loss.backward()
                assert leaf.grad is not None
                features.append(made)
                gradients.append(leaf.grad)
                loss += step_loss.detach()
        if features:
            torch.autograd.backward(features, gradients)
        return StepLoss(loss.item(), targets, outside)

    @torch.no_grad()
    def drafts(self, drafter: Eagle3, ids: Tensor, states: Tensor) -> list[int]:
        """Return how many drafts in a row, made from each token (but the last), equal the text (tokens,).

        ``states`` (tokens, 4 hidden). For a text decoded greedily they are what an engine accepts of a chain.
        """
        roots, width = len(ids) - 1, drafter.shape.hidden
        if not roots:
            return []
        chain = Unrolled(drafter, states[None, :roots, : 3 * width])
        embedding, right = embed(self.base, ids[None, 1:]), []
        for step in range(drafter.shape.draft_tokens):
            guess = drafter.tokens(drafter.logits(chain.step(embedding)).argmax(-1))
            target = torch.arange(roots, device=ids.device) + step + 2
            right.append((target < len(ids)) & (guess[0] == ids[target.clamp(max=len(ids) - 1)]))
            embedding = embed(self.base, guess)
        return torch.stack(right).long().cumprod(0).sum(0).tolist()


class Unrolled:
    """The head at all roots of some texts at once, step after step."""

    def __init__(self, head: Eagle3, states: Tensor):
        self._head = head
        self._state = head.fc(states)  # (rows, roots, hidden)
        self._keys: list[Tensor] = []  # of each step so far, (rows, kv heads, roots, head_dim)
        self._values: list[Tensor] = []

    def step(self, embedding: Tensor) -> Tensor:
        """Return the layer's output (rows, roots, hidden) of one more step, which reads ``embedding`` (rows, roots,
        hidden). Roots at the end may be left out of a step; they are out of the next ones, too."""
        roots, step = embedding.shape[1], len(self._keys)
        state, layer = self._state[:, :roots], self._head.midlayer
        positions = torch.arange(step, step + roots, device=embedding.device)
        query, key, value = layer.query_key_value(state, embedding, positions)
        self._keys, self._values = [*self._keys, key], [*self._values, value]
        attended = attend(query, [k[:, :, :roots] for k in self._keys], [v[:, :, :roots] for v in self._values])
        self._state = checkpoint(layer.output, state, attended, use_reentrant=False)
        return self._state


def attend(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Return attention (rows, heads, roots, head_dim) of a step's queries: each sees the first step of all roots up to
    its own, and the later steps of its own.

    Scores are there for a block of queries at a time, and are made again for their gradients.
    """
    blocks = []
    for start in range(0, query.shape[2], _QUERIES):
        end = min(start + _QUERIES, query.shape[2])
        own = [tensor[:, :, start:end] for tensor in (*keys[1:], *values[1:])]
        block = (query[:, :, start:end], keys[0][:, :, :end], values[0][:, :, :end], start, *own)
        blocks.append(checkpoint(_attend_block, *block, use_reentrant=False))
    return torch.cat(blocks, dim=2)


def _attend_block(query: Tensor, key: Tensor, value: Tensor, start: int, *own: Tensor) -> Tensor:
    own_keys, own_values = own[: len(own) // 2], own[len(own) // 2 :]
    grouped = query.unflatten(1, (key.shape[1], -1)) * query.shape[-1] ** -0.5  # (rows, kv heads, group, queries, dim)
    scores = grouped @ key[:, :, None].transpose(-1, -2)
    at = torch.arange(start, start + query.shape[2], device=query.device)
    later = torch.arange(key.shape[2], device=query.device) > at[:, None]
    scores = scores.masked_fill(later, float("-inf"))
    to_own = [(grouped * k[:, :, None]).sum(-1, keepdim=True) for k in own_keys]
    shares = torch.cat([scores, *to_own], dim=-1).softmax(-1)
    seen = key.shape[2]
    attended = shares[..., :seen] @ value[:, :, None]
    for number, own_value in enumerate(own_values):
        attended = attended + shares[..., seen + number, None] * own_value[:, :, None]
    return attended.flatten(1, 2)


def _draft_ids(head: Eagle3) -> Tensor | None:
    return head.draft_ids if head.shape.draft_vocab else None


def _shape(config: Any, draft_tokens: int, draft_vocab: int) -> Eagle3Shape:
    """Return the sizes of a head for a model of transformers: its layer is as wide as the model's."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Eagle3Shape(
        hidden=config.hidden_size,
        vocab=config.vocab_size,
        target_layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        intermediate=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        rope_theta=float(config.rope_parameters["rope_theta"]),
        max_positions=config.max_position_embeddings,
        draft_tokens=draft_tokens,
        draft_vocab=draft_vocab,
    )

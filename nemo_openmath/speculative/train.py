"""Training a drafter on a frozen model's own generations (ReDrafter, arXiv 2403.09919).

At every position the drafter reads the next i+1 tokens of the text and guesses the one after them, from that
position's hidden state: the loss is the sum over i < draft_tokens of the mean cross-entropy of these guesses, over
the tokens that the model itself wrote (prompts and program output are never drafted).

Logits are there for a block of rows at a time (models/loss.py), and a guess is differentiated before the next one is
made. So a step takes the memory of one guess's features, and not of ``draft_tokens`` times tokens x vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemo_openmath.checkpoints.quantize.calibration import load_model
from nemo_openmath.core.errors import OpenMathError
from nemo_openmath.models.devices import DeviceChoice
from nemo_openmath.models.drafters import DrafterShape, ReDrafter
from nemo_openmath.models.hf_config import describe
from nemo_openmath.models.loss import linear_cross_entropy
from nemo_openmath.speculative.texts import Text
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.schedule import learning_rate

_BLOCKS_BYTES = 4 << 30  # of a GPU, for blocks of logits
_WINDOW = 32  # batches whose texts are sorted by length, so that little is padding


@dataclass(frozen=True, slots=True)
class DrafterSettings:
    """How :func:`train` trains; the stage's :class:`DrafterConfig` says what each number means."""

    draft_tokens: int = 3
    layers: int = 2
    lr: float = 1e-3
    warmup: float = 0.1  # share of the steps in which the learning rate rises
    epochs: int = 1
    batch_tokens: int = 16384
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TrainedDrafter:
    """A new drafter, and how its training went."""

    drafter: ReDrafter
    steps: int
    loss: float  # mean over the last tenth of the steps
    tokens: int  # read, without padding


def load_base(folder: Path, settings: DrafterSettings, device: DeviceChoice = "auto") -> Any:
    """Return the model to draft for, frozen: a transformers causal language model on ``device``; ``auto`` is the GPU
    where there is one with room for the model and the training of a drafter."""
    model = describe(folder)
    width = 2 * model.hidden_size
    drafter = 4 * (width * (model.vocab_size + settings.layers * width) + 2 * model.hidden_size**2)
    # a drafter is there as weights, their gradients and those of a guess, and two moments of Adam; for each token of a
    # step there are embeddings, hidden states, and a guess's features with their gradients
    features = 4 * settings.batch_tokens * width * (4 + 6 * settings.layers)
    return load_model(folder, device, working=5 * drafter + features + _BLOCKS_BYTES)


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Multiply fp32 matrices in TF32 within the block where ``device`` is a GPU.

    Inputs of a product have 10 bits then, sums 23, and a step takes a small part of the time. On a CPU nothing changes.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def train(
    base: Any, texts: Sequence[Text], settings: DrafterSettings, on_step: Callable[[int, int, float], None]
) -> TrainedDrafter:
    """Train a new drafter for ``base``; call ``on_step(step, steps, loss)`` after each update.

    The same texts, settings and machine give the same drafter. Raises OpenMathError when the loss is not finite.
    """
    shape = DrafterShape(base.config.hidden_size, base.config.vocab_size, settings.layers, settings.draft_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        drafter = ReDrafter(shape).to(base.device)
    schedule = TrainingConfig(lr=settings.lr, warmup=settings.warmup, final_lr_ratio=0.0)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=settings.lr, weight_decay=0.0)
    plan = [batch for epoch in range(settings.epochs) for batch in batches(texts, settings, epoch)]
    losses: list[float] = []
    for step, batch in enumerate(plan):
        optimizer.param_groups[0]["lr"] = learning_rate(step, len(plan), schedule)
        optimizer.zero_grad()
        with fast_products(base.device):
            losses.append(add_gradients(base, drafter, [texts[i] for i in batch]))
        if not np.isfinite(losses[-1]):
            raise OpenMathError(f"the drafter's loss is {losses[-1]} at step {step + 1}; lower lr")
        optimizer.step()
        on_step(step + 1, len(plan), losses[-1])
    tokens = settings.epochs * sum(len(text.ids) for text in texts)
    last = losses[-max(1, len(losses) // 10) :]
    return TrainedDrafter(drafter.eval(), len(plan), sum(last) / len(last), tokens)


def batches(texts: Sequence[Text], settings: DrafterSettings, epoch: int) -> Iterator[list[int]]:
    """Yield the batches of an epoch as indices of ``texts``: every text once, shuffled.

    A batch is texts of like length, of ``batch_tokens`` at most with padding, or a single longer one.
    """
    rng = np.random.default_rng([settings.seed, epoch])
    order = rng.permutation(len(texts))
    mean = sum(len(text.ids) for text in texts) / max(1, len(texts))
    window = max(1, int(_WINDOW * settings.batch_tokens / max(1.0, mean)))
    plan: list[list[int]] = []
    for start in range(0, len(order), window):
        batch: list[int] = []
        for i in sorted(order[start : start + window].tolist(), key=lambda i: len(texts[i].ids)):
            if batch and (len(batch) + 1) * len(texts[i].ids) > settings.batch_tokens:
                plan.append(batch)
                batch = []
            batch.append(i)
        plan.append(batch)
    for i in rng.permutation(len(plan)).tolist():
        yield plan[i]


def add_gradients(base: Any, drafter: ReDrafter, texts: Sequence[Text]) -> float:
    """Return the loss of ``texts`` and add its gradients to those of the drafter's parameters.

    The loss is the sum over the lookaheads of the mean cross-entropy over the target tokens; a lookahead without any
    adds nothing.
    """
    rows = [torch.from_numpy(text.ids).long() for text in texts]
    ids = pad_sequence(rows, batch_first=True).to(base.device)
    loss_mask = pad_sequence([torch.from_numpy(text.loss_mask) for text in texts], batch_first=True).to(base.device)
    hidden, embedded = _read(base, ids)  # padding is at the right: causal attention never sees it
    state = torch.zeros_like(hidden)
    loss = hidden.new_zeros(())
    # of each lookahead: the drafter's states where a token is guessed, and the loss's gradient there
    states: list[Tensor] = []
    gradients: list[Tensor] = []
    for ahead in range(min(drafter.shape.draft_tokens, ids.shape[1] - 2)):
        # the state at t has read e(t+1) .. e(t+ahead+1); the guess is token t+ahead+2
        state = drafter.advance(state[:, :-1], embedded[:, ahead + 1 :])
        is_target = loss_mask[:, ahead + 2 :]
        if is_target.any():
            targets, guessing = ids[:, ahead + 2 :][is_target], state[:, :-1][is_target]
            leaf = guessing.detach().requires_grad_()
            features = drafter.features(hidden[:, : -(ahead + 2)][is_target], leaf)
            guess_loss = linear_cross_entropy(features, drafter.output_weight, targets) / len(targets)
            guess_loss.backward()
            assert leaf.grad is not None
            states.append(guessing)
            gradients.append(leaf.grad)
            loss += guess_loss.detach()
    if states:
        torch.autograd.backward(states, gradients)
    return loss.item()


@torch.no_grad()
def replay(base: Any, drafter: ReDrafter, text: Text, *, chunk: int = 1024) -> tuple[int, int]:
    """Return (steps, accepted draft tokens) of decoding the model's stretches of ``text`` with one beam.

    The text stands for the model's choices. For a text decoded greedily these are the numbers of :func:`speculate`, for
    a sampled one what greedy drafts would have saved. A step yields one token of the model and what is accepted.
    """
    ids = torch.as_tensor(text.ids, device=base.device).long()
    hidden, embedded = _read(base, ids[None])
    table = base.get_input_embeddings().weight
    accepted_at: list[Tensor] = []  # (positions,): how many drafts in a row equal the text behind each
    for start in range(0, len(ids) - 1, chunk):
        seen = torch.arange(start, min(start + chunk, len(ids) - 1), device=base.device)
        state, embedding = torch.zeros_like(hidden[0, seen]), embedded[0, seen + 1]
        equal = torch.zeros(len(seen), drafter.shape.draft_tokens, dtype=torch.bool, device=base.device)
        for ahead in range(drafter.shape.draft_tokens):
            state = drafter.advance(state, embedding)
            guess = drafter.logits(hidden[0, seen], state).argmax(-1)
            target = seen + ahead + 2
            equal[:, ahead] = (target < len(ids)) & (guess == ids[target.clamp(max=len(ids) - 1)])
            embedding = table[guess].to(state.dtype)
        accepted_at.append(equal.cumprod(1).sum(1))
    drafted = torch.cat(accepted_at).tolist()
    steps = accepted = 0
    at = 1
    while at < len(text.ids):  # ``at``: the token that the model itself decides, from the state before it
        if not text.loss_mask[at]:
            at += 1
            continue
        taken = 0
        while taken < drafted[at - 1] and text.loss_mask[at + taken + 1]:
            taken += 1
        steps, accepted, at = steps + 1, accepted + taken, at + taken + 1
    return steps, accepted


@torch.no_grad()
def _read(base: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return last hidden states and embeddings (rows, tokens, hidden) of the frozen model, in float32."""
    embedded = base.get_input_embeddings()(ids)
    return base.model(input_ids=ids, use_cache=False).last_hidden_state.float(), embedded.float()

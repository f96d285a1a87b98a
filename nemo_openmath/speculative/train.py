"""Training a drafter on a frozen model's own generations, and measuring it on others of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from nemo_openmath.core.errors import OpenMathError
from nemo_openmath.core.records.ids import content_id
from nemo_openmath.speculative.acceptance import Acceptance
from nemo_openmath.speculative.batches import batches, epoch_order, padding_share
from nemo_openmath.speculative.frozen import Batch, KeptStates, fast_products
from nemo_openmath.speculative.kind import DrafterTraining
from nemo_openmath.speculative.saved_state import SavedState
from nemo_openmath.speculative.settings import DrafterSettings
from nemo_openmath.speculative.texts import Text
from nemo_openmath.training.config import TrainingConfig
from nemo_openmath.training.schedule import learning_rate

FIRST_TOKENS = 1 << 18  # of texts that a drafter may be made from before it is trained

OnRead = Callable[[int, int], None]
OnStep = Callable[[int, int, float], None]
OnMeasured = Callable[[int, Acceptance], None]


@dataclass(frozen=True, slots=True)
class TrainedDrafter:
    """A new drafter, and how its training went."""

    drafter: Any
    steps: int
    loss: float  # mean over the last tenth of the steps
    tokens: int  # read, without padding
    padding: float  # share of padding among what the model read
    targets: int  # guesses that were trained
    outside: int  # guesses left out, of tokens that the drafter's vocabulary lacks
    acceptance: Acceptance  # at the end, on all held-out texts
    measured: list[dict[str, Any]] = field(default_factory=list)  # before it, on some: ``step`` and its numbers


def train(
    kind: DrafterTraining,
    texts: Sequence[Text],
    settings: DrafterSettings,
    on_step: OnStep,
    *,
    held_out: Sequence[Text] = (),
    on_read: OnRead = lambda *_: None,
    on_measured: OnMeasured = lambda *_: None,
    state_file: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainedDrafter:
    """Train a new drafter and measure it on ``held_out``; call ``on_step(step, steps, loss)`` after each update, and
    ``on_read(batches, all)`` after each batch that is read before the first one.

    The same texts, settings and machine give the same drafter, also where the training was killed and goes on from
    ``state_file``. Raises OpenMathError when the loss is not finite.
    """
    training = _Training(kind, texts, settings, held_out, state_file, on_read)
    saved_at = clock()
    for step, batch in training.remaining():
        loss = training.update(step, batch)
        if settings.measure_every and (step + 1) % settings.measure_every == 0 and step + 1 < training.num_steps:
            on_measured(step + 1, training.measure_during(step + 1))
        if state_file is not None and clock() - saved_at >= settings.save_seconds:
            training.save(state_file)
            saved_at = clock()
        on_step(step + 1, training.num_steps, loss)
    acceptance = training.measure(held_out)
    on_measured(training.num_steps, acceptance)
    return training.result(acceptance)


class _Training:
    """A training between two steps."""

    def __init__(
        self,
        kind: DrafterTraining,
        texts: Sequence[Text],
        settings: DrafterSettings,
        held_out: Sequence[Text],
        state_file: Path | None,
        on_read: OnRead,
    ):
        self._kind, self._texts, self._settings, self._held_out = kind, texts, settings, held_out
        self._device = kind.base.device
        self._plan = batches(texts, settings.batch_tokens, settings.seed)
        self.num_steps = settings.epochs * len(self._plan)
        self._kept = KeptStates(settings.kept_states_bytes)
        identity = _identity(kind, texts, settings)
        self._state = SavedState.read(state_file, identity) or SavedState(identity)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self._drafter = kind.new(texts, settings, () if self._state.step else self._first(on_read)).to(self._device)
        self._optimizer = torch.optim.AdamW(self._drafter.parameters(), lr=settings.lr, weight_decay=0.0)
        self._schedule = TrainingConfig(lr=settings.lr, warmup=settings.warmup, final_lr_ratio=0.0)
        if self._state.step:
            self._drafter.load_state_dict(self._state.drafter)
            self._optimizer.load_state_dict(self._state.optimizer)

    def remaining(self) -> Iterator[tuple[int, int]]:
        """Yield the number of each update that is still to be done, and of its batch."""
        seed, each = self._settings.seed, len(self._plan)
        for step in range(self._state.step, self.num_steps):
            yield step, epoch_order(each, step // each, seed)[step % each]

    def _first(self, on_read: OnRead) -> Iterator[tuple[Batch, Tensor]]:
        """Yield the batches of the first epoch with their states, as they are read there, up to a number of tokens."""
        order = epoch_order(len(self._plan), 0, self._settings.seed)
        sums = np.cumsum([sum(len(self._texts[i].ids) for i in self._plan[number]) for number in order])
        first = order[: 1 + int(np.searchsorted(sums, FIRST_TOKENS))]
        for count, number in enumerate(first, 1):
            batch = self._batch(number)
            with fast_products(self._device):
                states = self._states(number, batch)
            yield batch, states
            on_read(count, len(first))

    def _batch(self, number: int) -> Batch:
        return Batch.of([self._texts[i] for i in self._plan[number]], self._device)

    def _states(self, number: int, batch: Batch) -> Tensor:
        return self._kept.get(number, self._device, partial(self._kind.states, batch.ids))

    def update(self, step: int, number: int) -> float:
        """Train on a batch and return its loss. Raises OpenMathError where that is not finite."""
        batch = self._batch(number)
        self._optimizer.param_groups[0]["lr"] = learning_rate(step, self.num_steps, self._schedule)
        self._optimizer.zero_grad()
        with fast_products(self._device):
            states = self._states(number, batch)
            loss = self._kind.add_gradients(self._drafter, batch, states)
        if not np.isfinite(loss.value):
            raise OpenMathError(f"the drafter's loss is {loss.value} at step {step + 1}; lower lr")
        self._optimizer.step()
        state = self._state
        state.step, state.targets, state.outside = step + 1, state.targets + loss.targets, state.outside + loss.outside
        state.losses.append(loss.value)
        return loss.value

    def measure(self, held_out: Sequence[Text]) -> Acceptance:
        """Return what the drafter's guesses would have saved of decoding these texts, the first of ``held_out``."""
        self._drafter.eval()
        with fast_products(self._device):
            return measure(self._kind, self._drafter, held_out, self._kept)

    def measure_during(self, step: int) -> Acceptance:
        """Measure on a bounded number of texts, and note it."""
        acceptance = self.measure(self._held_out[: self._settings.measured_texts])
        self._state.measured.append({"step": step, **acceptance.to_json()})
        self._drafter.train()
        return acceptance

    def save(self, path: Path) -> None:
        self._state.drafter, self._state.optimizer = self._drafter.state_dict(), self._optimizer.state_dict()
        self._state.write(path)

    def result(self, acceptance: Acceptance) -> TrainedDrafter:
        state, losses = self._state, self._state.losses
        last = losses[-max(1, len(losses) // 10) :]
        return TrainedDrafter(
            drafter=self._drafter.eval(),
            steps=self.num_steps,
            loss=sum(last) / len(last),
            tokens=self._settings.epochs * sum(len(text.ids) for text in self._texts),
            padding=padding_share(self._texts, self._plan),
            targets=state.targets,
            outside=state.outside,
            acceptance=acceptance,
            measured=state.measured,
        )


def measure(kind: DrafterTraining, drafter: Any, texts: Sequence[Text], kept: KeptStates | None = None) -> Acceptance:
    """Return how decoding ``texts`` would go with ``drafter``: each text stands for the model's choices.

    For texts decoded greedily these are the numbers of :func:`~nemo_openmath.speculative.decode.speculate`; for sampled
    ones, what greedy drafts would have saved.
    """
    kept = kept or KeptStates(0)
    acceptance = Acceptance(drafter.shape.draft_tokens)
    for number, text in enumerate(texts):
        batch = Batch.of([text], kind.base.device)
        states = kept.get(("held out", number), kind.base.device, partial(kind.states, batch.ids))
        outside = int(((drafter.rows(batch.ids) < 0) & batch.loss_mask).sum())
        acceptance.add(text, kind.drafts(drafter, batch.ids[0], states[0]), outside)
    return acceptance


def _identity(kind: DrafterTraining, texts: Sequence[Text], settings: DrafterSettings) -> str:
    """Return an id of what is trained: the kind of drafter, the texts, and the settings that change it."""
    digest = blake3()
    for text in texts:
        digest.update(text.ids.tobytes())
        digest.update(text.loss_mask.tobytes())
    about_speed = ("kept_states_bytes", "save_seconds")
    changing = {name: value for name, value in asdict(settings).items() if name not in about_speed}
    return content_id("drafter", type(kind).__name__, changing, len(texts), digest.hexdigest())

"""Training a drafter as a stage of a recipe: a model and its own generations in, a drafter out."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import asdict, dataclass, field
from typing import Annotated

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.bounds import Bounds, NonNegativeInt, PositiveFloat, PositiveInt, ShareBelowOne
from nemo_openmath.core.errors import OpenMathError, UserError
from nemo_openmath.core.records import Generation
from nemo_openmath.core.records.lineage import Lineage, digest_tree
from nemo_openmath.core.stage import RUNTIME, Stage, StageContext
from nemo_openmath.models.devices import DeviceChoice
from nemo_openmath.speculative.texts import read_texts


@dataclass(frozen=True)
class DrafterConfig:
    """Settings of the training of a draft model."""

    draft_tokens: PositiveInt = 3
    """Tokens that are guessed at once. Paper section 6."""
    layers: NonNegativeInt = 2
    """Residual blocks of the drafter's head."""
    lr: PositiveFloat = 1e-3
    """Highest learning rate, after a warm-up of 10% of the steps; it falls to 0 as a cosine."""
    epochs: PositiveInt = 1
    """Times that each generation is seen."""
    max_tokens: Annotated[int, Bounds(3)] = 8192
    """Tokens to which a longer generation is cut."""
    batch_tokens: PositiveInt = 16384
    """Tokens of a step, padding included."""
    held_out: ShareBelowOne = 0.05
    """Share of the problems whose generations measure the drafter instead of training it."""

    device: DeviceChoice = field(default="auto", metadata=RUNTIME)
    """Where it is trained: ``cpu``, ``cuda``, or ``auto``, the GPU where there is one with room."""

    def __post_init__(self) -> None:
        if min(self.draft_tokens, self.epochs, self.batch_tokens) < 1 or self.layers < 0 or self.max_tokens < 3:
            raise ValueError("draft_tokens, epochs and batch_tokens are at least 1, layers 0, max_tokens 3")
        if not 0 <= self.held_out < 1:
            raise ValueError("held_out is a share: at least 0 and less than 1")


class TrainDrafter(Stage[DrafterConfig]):
    """Train a ReDrafter for one model (paper section 6), with the model frozen.

    It runs in one process. Killed and run again it starts over; a finished drafter appears whole."""

    kind = "drafter.train"
    version = 2  # the sums of a step's gradients are in another order
    Config = DrafterConfig
    ports = {"generations": "solutions that the model itself generated", "model": "model to draft for"}
    takes = {"generations": "Generation", "model": "model"}
    encodes = ("generations", "model")
    makes = "drafter"

    async def run(self, context: StageContext) -> None:
        stopped = threading.Event()
        try:
            await asyncio.to_thread(self._train, context, stopped)
        finally:
            stopped.set()  # a thread cannot be cancelled: it looks at each step

    def _train(self, context: StageContext, stopped: threading.Event) -> None:
        from nemo_openmath.checkpoints.output import building  # torch takes seconds to import
        from nemo_openmath.speculative.train import DrafterSettings, load_base, replay, train

        config, model = self.config, context.only("model")
        texts = read_texts(
            context.read("generations", Generation),
            ChatTokenizer.load(model),
            max_tokens=config.max_tokens,
            held_out=config.held_out,
            seed=context.seed,
        )
        if not texts.training:
            counts = ", ".join(f"{name}: {count}" for name, count in texts.counts.items()) or "no generation"
            folder = next(iter(context.paths("generations")), None)
            remedy = "give more generations of the model, or a smaller held_out"
            raise UserError(f"nothing to train on ({counts})", file=folder, remedy=remedy)

        def on_step(step: int, steps: int, loss: float) -> None:
            if stopped.is_set():
                raise OpenMathError(f"{context.name}: stopped")
            if step == 1:
                context.progress.begin(steps)
            context.progress.advance(1, f"loss {loss:.3f}")

        shared = {k: v for k, v in asdict(config).items() if k not in ("max_tokens", "held_out", "device")}
        settings = DrafterSettings(**shared, seed=context.seed)
        base = load_base(model, settings, config.device)
        trained = train(base, texts.training, settings, on_step)
        replayed = [replay(base, trained.drafter, text) for text in texts.held_out]
        steps, accepted = sum(s for s, _ in replayed), sum(a for _, a in replayed)
        context.metrics.update(
            texts.counts,
            steps=trained.steps,
            loss=round(trained.loss, 4),
            tokens=trained.tokens,
            held_out=len(texts.held_out),
            accepted_per_step=round(accepted / steps, 3) if steps else None,
        )
        sources = [*context.paths("generations"), model]
        inputs = {path.name: {"path": str(path), "digest": digest_tree(path)} for path in sources}
        with building(context.output, into_existing=True) as folder:
            trained.drafter.save(folder)
            Lineage("drafter", inputs, config={**self.settings(), "seed": context.seed}).write(folder)

"""Training a drafter as a stage of a recipe: a model and its own generations in, a drafter out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.bounds import (
    Bounds,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ShareBelowOne,
)
from nemo_openmath.core.errors import OpenMathError, UserError
from nemo_openmath.core.records import Generation, read_records
from nemo_openmath.core.records.lineage import Lineage, digest_tree
from nemo_openmath.core.stage import RUNTIME, Stage, StageContext
from nemo_openmath.models.devices import DeviceChoice, check_device
from nemo_openmath.models.drafter_shape import DraftForm, Recurrence, refuse_few_layers
from nemo_openmath.models.hf_config import describe
from nemo_openmath.speculative.acceptance import Acceptance
from nemo_openmath.speculative.settings import DrafterSettings
from nemo_openmath.speculative.sources import TextReader
from nemo_openmath.speculative.texts import Texts, frequent_tokens, some_texts

_STATE = ".training.pt"
_KEPT_TEXTS = 1 << 18


@dataclass(frozen=True)
class DrafterConfig:
    """Settings of the training of a draft model."""

    form: DraftForm = "redrafter"
    """``redrafter`` is the paper's, for TensorRT-LLM's engines and the embedded engine; ``eagle3`` makes the head that
    vLLM, SGLang and TensorRT-LLM's PyTorch backend read (arXiv 2503.01840)."""
    draft_tokens: PositiveInt = 3
    """Tokens that are guessed at once, at most as many as an engine may ask of the drafter. Paper section 6."""
    layers: NonNegativeInt = 2
    """Residual blocks of a ReDrafter's head."""
    draft_vocab: NonNegativeInt = 0
    """Tokens that may be guessed: those that the model wrote most, fewer than it has. 0: all, as the paper. On a CPU
    the head of 152,000 tokens costs a quarter of a pass of a 0.5B model, for each guess: 8192 are enough there."""
    recurrence: Recurrence = "silu"
    """Of a ReDrafter. ``linear``: its state has no activation and no bias, which is what TensorRT-LLM's engines
    compute. ``silu`` is the form of its paper."""
    kept_texts: NonNegativeInt = _KEPT_TEXTS
    """Tokens of the solutions that are kept beside a ReDrafter: the embedded engine's n-grams look into them from the
    start. 0: none."""
    lr: PositiveFloat = 1e-3
    """Highest learning rate; it falls to 0 as a cosine."""
    warmup: ShareBelowOne = 0.1
    """Share of the steps in which the learning rate rises."""
    epochs: PositiveInt = 1
    """Times that each generation is seen."""
    max_tokens: Annotated[int, Bounds(3)] = 8192
    """Tokens to which a longer generation is cut, its prompt among them: at least ``draft_tokens`` + 2, so that each
    draft has one to learn."""
    batch_tokens: PositiveInt = 16384
    """Tokens of a step, padding included."""
    held_out: ShareBelowOne = 0.05
    """Share of the problems whose generations measure the drafter instead of training it. With the input ``held_out``
    none is taken away."""
    measure_every: NonNegativeInt = 500
    """Steps between measurements during the training; 0: only at the end."""
    measured_texts: PositiveInt = 64
    """Held-out generations that are measured during the training; all of them are at its end."""

    device: DeviceChoice = field(default="auto", metadata=RUNTIME)
    """Where it is trained: ``cpu``, ``cuda``, or ``auto``, the GPU where there is one with room."""
    kept_gib: NonNegativeFloat = field(default=1.0, metadata=RUNTIME)
    """Memory for the model's hidden states, which later epochs and measurements read again. What has no room is made
    anew each time."""
    save_minutes: PositiveFloat = field(default=10.0, metadata=RUNTIME)
    """Minutes between saves of the training's state."""

    def __post_init__(self) -> None:
        if min(self.draft_tokens, self.epochs, self.batch_tokens) < 1 or self.layers < 0:
            raise ValueError("draft_tokens, epochs and batch_tokens are at least 1, layers 0")
        if self.max_tokens < self.draft_tokens + 2:
            problem = f"max_tokens {self.max_tokens} leaves draft {max(1, self.max_tokens - 1)} of {self.draft_tokens}"
            problem += (
                f" no token to learn: it is at least draft_tokens + 2, which is {self.draft_tokens + 2}, and should"
            )
            raise ValueError(f"{problem} be the length of a solution with its prompt")
        if not 0 <= self.held_out < 1:
            raise ValueError("held_out is a share: at least 0 and less than 1")
        if self.form == "eagle3" and (self.layers, self.recurrence, self.kept_texts) != (2, "silu", _KEPT_TEXTS):
            problem = "layers, recurrence and kept_texts are of a redrafter: leave them out with form: eagle3"
            raise ValueError(problem)


class TrainDrafter(Stage[DrafterConfig]):
    """Train a drafter for one model (paper section 6), with the model frozen, and measure how many of its guesses the
    model accepts.

    It runs in one process. Killed and run again it goes on from its newest save, and makes the same drafter."""

    kind = "drafter.train"
    version = 6  # steps are those of a decoder that stops where an answer ends; config.json says what was trained
    Config = DrafterConfig
    ports = {
        "generations": "solutions that the model itself generated",
        "model": "model to draft for",
        "held_out?": "solutions of the model, of other problems, to measure the drafter on",
    }
    takes = {"generations": "Generation", "model": "model", "held_out": "Generation"}
    encodes = ("generations", "model")
    makes = "drafter"

    def check(self, inputs: Mapping[str, Sequence[Path]]) -> None:
        for model in inputs.get("model", ()):
            described = describe(model)
            if self.config.form == "eagle3":
                refuse_few_layers(described.num_hidden_layers, model)
            if (rows := self.config.draft_vocab) >= described.vocab_size:
                problem = f"draft_vocab {rows} is no part of the model's {described.vocab_size} tokens"
                raise UserError(problem, file=model, remedy="choose fewer; 0 means all")

    def check_ready(self, inputs: Mapping[str, Sequence[Path]], seed: int) -> None:
        from nemo_openmath.checkpoints.checkpoint import open_checkpoint  # torch takes seconds to import

        (model,) = inputs["model"]
        open_checkpoint(model, quiet=True)
        if self.config.device == "cuda":
            check_device("cuda")
        reader, apart = self._reader(model, seed), inputs.get("held_out")
        for port, share in (("generations", 0.0 if apart else self.config.held_out), ("held_out", 0.0)):
            if folders := inputs.get(port):
                records = (record for folder in folders for record in read_records(folder, Generation))
                texts = reader.read(records, share, folders[0], few=True)
                if port == "generations":
                    reader.refuse_untaught(texts.training, folders[0])

    async def run(self, context: StageContext) -> None:
        stopped = threading.Event()
        try:
            await asyncio.to_thread(self._train, context, stopped)
        finally:
            stopped.set()  # a thread cannot be cancelled: it looks at each step

    def _train(self, context: StageContext, stopped: threading.Event) -> None:
        from nemo_openmath.checkpoints.output import building  # torch takes seconds to import
        from nemo_openmath.models.drafter_texts import save_texts
        from nemo_openmath.speculative.eagle3 import Eagle3Training
        from nemo_openmath.speculative.frozen import load_base
        from nemo_openmath.speculative.redrafter import RedrafterTraining
        from nemo_openmath.speculative.report import write_report
        from nemo_openmath.speculative.train import train

        texts, settings, model = self._texts(context), self._settings(context.seed), context.only("model")
        if others := sorted(texts.models - {model.name}):
            context.progress.log(f"some solutions are of {', '.join(others)}, and the drafter is for {model.name}")
        self.check({"model": [model]})  # one that a stage made was not there when the run began
        base = load_base(model, settings, self.config.device)
        kind = Eagle3Training(base) if self.config.form == "eagle3" else RedrafterTraining(base)
        note = _Notes(context, stopped)
        state_file = context.output / _STATE
        trained = train(
            kind,
            texts.training,
            settings,
            note.step,
            held_out=texts.held_out,
            on_read=note.read,
            on_measured=note.measured,
            state_file=state_file,
        )
        facts = {
            "form": self.config.form,
            "model": model.name,
            "texts": len(texts.training),  # the paper: 100,000
            "steps": trained.steps,
            "loss": round(trained.loss, 4),
            "tokens": trained.tokens,
            "padding": round(trained.padding, 4),
            "draft_vocab": trained.drafter.shape.draft_vocab,
            "targets": trained.targets,
            "targets left out: not in draft_vocab": trained.outside,
            "held_out": len(texts.held_out),
        }
        numbers = trained.acceptance.to_json()
        context.metrics.update(
            texts.counts, **facts, accepted_per_step=numbers["accepted_per_step"], acceptance=numbers
        )
        if trained.measured:
            context.metrics["during_training"] = trained.measured
        sources = [*context.paths("generations"), model, *context.paths("held_out")]
        inputs = {path.name: {"path": str(path), "digest": digest_tree(path)} for path in sources}
        with building(context.output, into_existing=True) as folder:
            trained.drafter.save(folder)
            if isinstance(kind, RedrafterTraining):
                save_texts(folder, some_texts(texts.training, self.config.kept_texts, context.seed))
            write_report(folder, trained, facts)
            Lineage("drafter", inputs, config={**self.settings(), "seed": context.seed}).write(folder)
        state_file.unlink(missing_ok=True)

    def _settings(self, seed: int) -> DrafterSettings:
        config = self.config
        return DrafterSettings(
            form=config.form,
            draft_tokens=config.draft_tokens,
            layers=config.layers,
            draft_vocab=config.draft_vocab,
            recurrence=config.recurrence,
            lr=config.lr,
            warmup=config.warmup,
            epochs=config.epochs,
            batch_tokens=config.batch_tokens,
            measure_every=config.measure_every,
            measured_texts=config.measured_texts,
            seed=seed,
            kept_states_bytes=int(config.kept_gib * 2**30),
            save_seconds=60 * config.save_minutes,
        )

    def _reader(self, model: Path, seed: int) -> TextReader:
        return TextReader(ChatTokenizer.load(model), self.config.max_tokens, self.config.draft_tokens, seed)

    def _texts(self, context: StageContext) -> Texts:
        """Return what is trained and measured on. Raises UserError where one of them is nothing, or a draft would have
        nothing to learn."""
        model, apart, folder = context.only("model"), context.paths("held_out"), context.paths("generations")[0]
        reader, share = self._reader(model, context.seed), 0.0 if apart else self.config.held_out
        texts = reader.read(context.read("generations", Generation), share, folder)
        draft_ids = frequent_tokens(texts.training, self.config.draft_vocab, describe(model).vocab_size)
        reader.refuse_untaught(texts.training, folder, draft_ids)
        if apart:
            measured = reader.read(context.read("held_out", Generation), 0.0, apart[0])
            texts.held_out.extend(measured.training)
            texts.counts.update({f"held_out, {name}": count for name, count in measured.counts.items()})
        return texts


class _Notes:
    """What a training says of itself while it runs."""

    def __init__(self, context: StageContext, stopped: threading.Event):
        self._context, self._stopped, self._begun, self._accepted = context, stopped, False, ""

    def read(self, batches: int, of: int) -> None:
        self._go_on()
        if batches == 1:
            self._context.progress.log("the model reads its solutions, from which the drafter begins")
            self._context.progress.begin(of)
        self._context.progress.advance(1, "batches read")

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise OpenMathError(f"{self._context.name}: stopped")

    def step(self, step: int, steps: int, loss: float) -> None:
        self._go_on()
        if not self._begun:
            if step > 1:
                self._context.progress.log(f"goes on at step {step} of {steps}: its newest save is of step {step - 1}")
            self._context.progress.begin(steps, step - 1)
            self._begun = True
        self._context.progress.advance(1, f"loss {loss:.3f}{self._accepted}")

    def measured(self, step: int, acceptance: Acceptance) -> None:
        self._accepted = f", {acceptance.line()}"
        self._context.progress.log(f"step {step}: {acceptance.line()}")

"""The Lightning data module that gives NeMo 2.x (``llm.finetune``) the packs of a folder. This module imports NeMo."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from nemo.collections.llm.gpt.data.fine_tuning import FineTuningDataModule
from nemo.lightning.data import WrappedDataLoader

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.packs.plan import PackPlan
from nemo_openmath.integrations.nemo.packs import PackStream, collate


class PackedDataModule(FineTuningDataModule):
    """The packs of a folder, for a NeMo trainer.

    - ``folder``: of a ``packs.plan``.
    - ``global_batch_size``: packs (not samples) of a step, a multiple of the data-parallel size;
      ``packs.packs_per_batch`` computes it from samples.
    - ``epochs``: length of the data; the trainer's ``max_steps`` may end it sooner.
    - ``balance``: the packs of a batch are ordered so that ranks get the same attention cost.
    - ``pad_to_capacity``: rows always have the same length, for cuda graphs; otherwise a rank's rows are as long as its
      longest of the step needs.
    - ``validation``: another folder of packs.
    - ``model``: Hugging Face folder of the model; token files made with another tokenizer or template are refused.
    - ``tokenizer``: NeMo's, for what is saved beside checkpoints.

    The model's config must have ``data_step_fn=packed_data_step``, as the recipes have it. Resuming is NeMo's: its
    checkpoints count the packs that were consumed, and here also carry a fingerprint of data and order.
    """

    def __init__(
        self,
        folder: str,
        global_batch_size: int,
        epochs: float,
        seed: int = 0,
        balance: bool = True,
        pad_to_capacity: bool = False,
        validation: str | None = None,
        model: str | None = None,
        tokenizer: Any = None,
        num_workers: int = 2,
    ):
        self.plan = PackPlan(folder)
        super().__init__(
            dataset_root=folder,
            seq_length=self.plan.capacity,
            tokenizer=tokenizer,
            micro_batch_size=1,
            global_batch_size=global_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        self.epochs, self.balance, self.pad_to_capacity = epochs, balance, pad_to_capacity
        self.validation, self.model = validation, model

    def prepare_data(self) -> None:
        """Do nothing: packing is a stage of its own."""

    def setup(self, stage: str) -> None:
        """Check that packs, layout and tokenizer fit together. Raises UserError."""
        plans = [self.plan] if self.validation is None else [self.plan, PackPlan(self.validation)]
        multiple = self._sample_multiple()
        for plan in plans:
            plan.require_multiple(multiple)
            if self.model is not None:
                from nemo_openmath.chat import ChatTokenizer

                for tokens in plan.samples.folders:
                    tokens.require(ChatTokenizer.load(self.model, chat=False).fingerprint)
        super().setup(stage)

    @property
    def fingerprint(self) -> str:
        """Identifies the packs and their order."""
        return f"{self.plan.digest}-{self.seed}-{self.global_batch_size}-{self._ranks() if self.balance else 1}"

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore NeMo's state. Raises UserError where the checkpoint is of other packs or of another order."""
        saved = state_dict.get("fingerprint", self.fingerprint)
        if saved.rsplit("-", 1)[0] != self.fingerprint.rsplit("-", 1)[0]:  # ranks only permute the packs of a step
            raise UserError(
                f"the checkpoint was trained on packs {saved}, these are {self.fingerprint}",
                file=self.plan.folder,
                remedy="resume with the packs, seed and batch it was trained with",
            )
        super().load_state_dict(state_dict)

    def train_dataloader(self) -> WrappedDataLoader:
        return self._loader(
            PackStream(
                self.plan,
                epochs=self.epochs,
                batch_packs=self.global_batch_size,
                seed=self.seed,
                ranks=self._ranks() if self.balance else 1,
            ),
            "train",
        )

    def val_dataloader(self) -> WrappedDataLoader | list[Any]:
        if self.validation is None:
            return []
        plan = PackPlan(self.validation)
        return self._loader(PackStream(plan, epochs=1, batch_packs=self.global_batch_size), "validation")

    def _loader(self, stream: PackStream, mode: str) -> WrappedDataLoader:
        strategy = self.trainer.strategy
        layout = 2 * strategy.context_parallel_size * strategy.tensor_model_parallel_size
        multiple = math.lcm(stream.plan.pad_multiple, layout, 16)  # 16: FP8
        length = -(-stream.plan.capacity // multiple) * multiple if self.pad_to_capacity else None
        stream.collate_fn = partial(collate, multiple=multiple, length=length)  # where NeMo looks for it
        return self._create_dataloader(stream, mode)

    def _sample_multiple(self) -> int:
        cp = int(self.trainer.strategy.context_parallel_size)
        return 2 * cp if cp > 1 else 1

    def _ranks(self) -> int:
        strategy = self.trainer.strategy
        model = (
            strategy.tensor_model_parallel_size * strategy.pipeline_model_parallel_size * strategy.context_parallel_size
        )
        return int(self.trainer.world_size) // int(model)

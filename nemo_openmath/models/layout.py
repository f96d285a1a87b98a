"""How a training is spread over processes: tensor, pipeline, context, data parallelism; which products are valid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemo_openmath.core.bounds import PositiveInt
from nemo_openmath.core.errors import UserError
from nemo_openmath.models.configs import ModelConfig

Precision = Literal["fp32", "bf16"]
Recompute = Literal["none", "selective", "full"]
LayerBackend = Literal["auto", "local", "transformer_engine"]
Exchange = Literal["all_gather", "ring"]
ContextExchange = Literal["auto", "all_gather", "ring"]


@dataclass(frozen=True)
class Parallel:
    """Sizes of the model-parallel groups; what is left of the world is data parallel."""

    tp: PositiveInt = 1
    """Tensor parallel: ranks over which each matrix is split."""
    pp: PositiveInt = 1
    """Pipeline stages: ranks over which the layers are split."""
    cp: PositiveInt = 1
    """Context parallel: ranks over which each sample is split."""
    vpp: PositiveInt = 1
    """Model chunks of each pipeline stage (interleaved 1F1B when above 1)."""
    sequence_parallel: bool = False
    """Split norms and residuals over the tensor-parallel ranks, too."""

    @property
    def model_parallel(self) -> int:
        """Return the ranks that hold one replica of the model."""
        return self.tp * self.pp * self.cp

    @property
    def sample_multiple(self) -> int:
        """Return the multiple of tokens to which each sample is padded: two zig-zag chunks per context rank."""
        return 2 * self.cp if self.cp > 1 else 1

    @property
    def pack_multiple(self) -> int:
        """Return the multiple of tokens that a pack's length is, so that sequence parallelism splits it evenly."""
        return self.sample_multiple * (self.tp if self.sequence_parallel else 1)

    def data_parallel(self, world_size: int) -> int:
        """Return the number of data-parallel replicas. Raises UserError for a world that the product does not
        divide."""
        if world_size % self.model_parallel:
            raise UserError(
                f"{world_size} processes are not a multiple of tp x pp x cp = "
                f"{self.tp} x {self.pp} x {self.cp} = {self.model_parallel}",
                remedy=f"start a multiple of {self.model_parallel} processes or lower parallel.tp, .pp or .cp",
            )
        return world_size // self.model_parallel

    def check(self, model: ModelConfig, world_size: int) -> int:
        """Return the data-parallel size. Raises UserError where the layout does not fit the model or the world; it says
        which number to change."""
        for name in ("tp", "pp", "cp", "vpp"):
            if getattr(self, name) < 1:
                raise UserError(f"parallel.{name} is {getattr(self, name)}", remedy=f"set parallel.{name} to 1 or more")
        for name, value in (
            ("num_attention_heads", model.num_attention_heads),
            ("num_key_value_heads", model.num_key_value_heads),
            ("intermediate_size", model.intermediate_size),
            ("vocab_size", model.vocab_size),
        ):
            if value % self.tp:
                raise UserError(
                    f"{name} = {value} is not divisible by parallel.tp = {self.tp}",
                    remedy=f"set parallel.tp to a divisor of {value}",
                )
        stages = self.pp * self.vpp
        if model.num_hidden_layers % stages:
            raise UserError(
                f"{model.num_hidden_layers} layers are not divisible by parallel.pp x parallel.vpp = "
                f"{self.pp} x {self.vpp}",
                remedy=f"change parallel.pp or parallel.vpp to divide {model.num_hidden_layers}",
            )
        if self.vpp > 1 and self.pp == 1:
            raise UserError(
                "parallel.vpp needs pipeline stages", remedy="set parallel.pp to 2 or more, or parallel.vpp to 1"
            )
        if self.sequence_parallel and self.tp == 1:
            raise UserError(
                "parallel.sequence_parallel splits over the tensor-parallel group, which has one rank",
                remedy="set parallel.tp to 2 or more, or parallel.sequence_parallel to false",
            )
        return self.data_parallel(world_size)

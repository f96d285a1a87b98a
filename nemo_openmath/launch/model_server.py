"""What serves a model on a cluster: its settings, and the shell words that start it.

Which options start a server on several nodes was taken from the programs' own texts: ``vllm serve --help=all`` of vLLM
0.32, SGLang's "Multi-Node Deployment", and TensorRT-LLM's ``examples/llm-api/llm_mgmn_trtllm_serve.sh``.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Literal

from nemo_openmath.core.bounds import NonNegativeInt, PositiveInt
from nemo_openmath.launch.container import Container
from nemo_openmath.launch.values import check_amounts

ClusterEngine = Literal["vllm", "sglang", "trtllm", "openmath", "command"]

_ADDRESS = [(name, "nothing, for clients are told the address") for name in ("--host", "--port")]
_NAME = ("--served-model-name", "nothing, for clients ask for the model by it")
_TENSOR, _PIPELINE, _LENGTH = "tensor_parallel:", "pipeline_parallel:", "max_model_len:"
_WRITTEN: dict[str, list[tuple[str, str]]] = {
    "vllm": [
        *_ADDRESS, _NAME, ("--max-model-len", _LENGTH), ("--tensor-parallel-size", _TENSOR), ("-tp", _TENSOR),
        ("--pipeline-parallel-size", _PIPELINE), ("-pp", _PIPELINE),
    ],
    "sglang": [
        *_ADDRESS, _NAME, ("--context-length", _LENGTH), ("--tp-size", _TENSOR), ("--tp", _TENSOR),
        ("--tensor-parallel-size", _TENSOR), ("--pp-size", _PIPELINE), ("--pp", _PIPELINE),
    ],
    "trtllm": [*_ADDRESS, ("--max-seq-len", _LENGTH), ("--tp-size", _TENSOR), ("--pp-size", _PIPELINE)],
    "openmath": [*_ADDRESS, ("--name", _NAME[1]), ("--max-context", _LENGTH)],
}  # fmt: skip
"""Options of each program that the launcher writes, and what says them: the last one given counts, and a server at
another port is never heard of."""


@dataclass(frozen=True)
class ModelServer:
    """What serves a model to the jobs that generate with it."""

    engine: ClusterEngine = "vllm"
    """The program: ``vllm``, ``sglang``, ``trtllm``, ``openmath`` (this project's own server), or ``command``."""
    model: str | None = None
    """Folder of the weights. ``null`` is what the recipe names; of the teacher, its ``teacher.tokenizer``."""
    jobs: NonNegativeInt = 0
    """How many jobs serve the model to all stages that ask it at that time (a pool). With 0, each job that asks starts
    a server of its own, on its own nodes."""
    nodes: PositiveInt = 1
    """Nodes of one server."""
    gpus: NonNegativeInt = 0
    """GPUs of each node, for all replicas together."""
    replicas: PositiveInt = 1
    """Servers on one node, among which its GPUs are divided."""
    tensor_parallel: PositiveInt | None = None
    """GPUs among which each layer is divided. ``null`` is all of a server, divided by
    ``pipeline_parallel``."""
    pipeline_parallel: PositiveInt = 1
    """Groups of GPUs among which the layers are divided."""
    max_model_len: PositiveInt | None = None
    """Most tokens of a prompt and its completion together; the cache of keys and values must have room for them.
    ``null`` is what the model itself allows."""
    cpus: PositiveInt = 1
    """Processors of each node."""
    memory: str = "0"
    """Memory of each node, as sbatch takes it; ``0`` is all of it."""
    time: str | None = None
    """Time limit of a job of the pool. A server that reaches it is queued again while somebody needs it."""
    partition: str | None = None
    """The partition of the pool's jobs, in place of that of the role ``server``."""
    container: Container | None = None
    """The server's container, in place of that of the role ``server``."""
    start_seconds: PositiveInt = 3600
    """How long a server may take to answer /health, in seconds."""
    wait_seconds: PositiveInt = 14400
    """How long a job that asks the pool waits for an address, at its start and while none is there, in seconds."""
    restarts: NonNegativeInt = 3
    """How often in a row, without ten healthy minutes in between, a server that died is started again in its place.
    Then its job fails as one whose machine is at fault. So does a server on several nodes, at once."""
    arguments: tuple[str, ...] = ()
    """Further words for the program, unchanged."""
    command: str | None = None
    """Shell words that start the server, for ``engine: command``. They use ``$MODEL`` (the folder), ``$NAME`` (what
    clients call it) and ``$PORT``, and may use ``$HOST`` (where to listen), ``$GPUS`` (of this server on this node),
    ``$TENSOR_PARALLEL``, ``$PIPELINE_PARALLEL``, ``$MAX_MODEL_LEN`` (empty where not set), ``$NODES``, ``$NODE_RANK``,
    ``$HEAD`` (address of the first node) and ``$HEAD_PORT``. GET /health must answer on the first node."""

    def __post_init__(self) -> None:
        check_amounts(self.time, self.memory, self.partition)
        if (self.engine == "command") != (self.command is not None):
            raise ValueError("command and engine: command need each other")
        if self.command is not None:
            for word in ("MODEL", "PORT"):
                if f"${word}" not in self.command and f"${{{word}}}" not in self.command:
                    raise ValueError(f'the command of a server must use "${word}"')
        if self.jobs == 0 and (self.time or self.partition):
            raise ValueError("time and partition are those of a pool's jobs: write jobs: 1 or more")
        self._check_arguments()
        self._check_gpus()

    def _check_arguments(self) -> None:
        ours = dict(_WRITTEN.get(self.engine, ()))
        for word in self.arguments:
            if re.match(r"--?[A-Za-z][\w-]*\s", word):
                first, rest = word.split(maxsplit=1)
                raise ValueError(f"arguments has {word!r}, which is one word for the program: write {first}, {rest}")
            name = word.partition("=")[0].replace("_", "-")
            if name in ours:
                raise ValueError(f"arguments has {name}, which the launcher writes: what says it is {ours[name]}")

    def _check_gpus(self) -> None:
        if self.replicas > 1 and self.nodes > 1:
            raise ValueError("replicas are on one node: write nodes: 1, or replicas: 1 and jobs: for more servers")
        if self.gpus % self.replicas:
            raise ValueError(f"{self.gpus} GPUs cannot be divided among {self.replicas} replicas")
        if self.engine == "openmath" and (self.nodes > 1 or self.world > 1):
            raise ValueError("openmath serves on one GPU, or on none: write replicas: for several servers on a node")
        if self.engine == "trtllm" and self.replicas > 1 and self.world > 1:
            raise ValueError("replicas of trtllm have one GPU each: write replicas: 1 and jobs: for more servers")
        if self.gpus == 0 and self.engine in ("sglang", "trtllm"):
            raise ValueError(f"{self.engine} needs GPUs: write gpus:")
        parts = (self.tensor_parallel or 1) * self.pipeline_parallel
        if self.gpus and self.engine in ("vllm", "sglang", "trtllm"):
            if self.tensor_parallel is not None and parts != self.world:
                raise ValueError(
                    f"tensor_parallel x pipeline_parallel is {parts}, and a server has {self.world} GPUs "
                    "(nodes x gpus / replicas)"
                )
            if self.world % self.pipeline_parallel:
                raise ValueError(
                    f"{self.world} GPUs cannot be divided into {self.pipeline_parallel} parts of the layers"
                )

    @property
    def world(self) -> int:
        """GPUs of one server, on all its nodes."""
        return self.nodes * self.gpus // self.replicas

    @property
    def tensor(self) -> int:
        """GPUs among which each layer is divided."""
        return self.tensor_parallel or max(1, self.world // self.pipeline_parallel)

    @property
    def tasks(self) -> int:
        """Processes that Slurm starts on each node: the replicas; the ranks of TensorRT-LLM, which uses MPI."""
        return self.gpus if self.uses_mpi else self.replicas

    @property
    def uses_mpi(self) -> bool:
        """Whether the processes of a server find each other by MPI."""
        return self.engine == "trtllm" and self.world > 1

    @property
    def is_group(self) -> bool:
        """Whether the tasks are one server together, of which the first one answers."""
        return self.nodes > 1 or self.uses_mpi

    def shell(self) -> str:
        """Return the shell words that start the server, or its part on a node."""
        if self.command is not None:
            return self.command
        words = {
            "vllm": self._vllm,
            "sglang": self._sglang,
            "trtllm": self._trtllm,
            "openmath": self._openmath,
        }[self.engine]()
        return " ".join([*words, *map(shlex.quote, self.arguments)])

    def _vllm(self) -> list[str]:
        # the model's own generation_config.json would change what is sampled where a field is not sent
        words = ['vllm serve "$MODEL" --served-model-name "$NAME" --host "$HOST" --port "$PORT"']
        words += ["--generation-config vllm --enable-prompt-tokens-details"]  # the latter: else cached tokens read 0
        words += [f"--max-model-len {self.max_model_len}"] if self.max_model_len else []
        words += [f"--tensor-parallel-size {self.tensor}"] if self.gpus else []
        words += [f"--pipeline-parallel-size {self.pipeline_parallel}"] if self.pipeline_parallel > 1 else []
        if self.nodes > 1:
            words += [
                f'--nnodes {self.nodes} --node-rank "$NODE_RANK" --master-addr "$HEAD" --master-port "$HEAD_PORT"'
            ]
            words += ['--distributed-executor-backend mp $([ "$NODE_RANK" = 0 ] || echo --headless)']
        return words

    def _sglang(self) -> list[str]:
        words = ['python3 -m sglang.launch_server --model-path "$MODEL" --served-model-name "$NAME"']
        words += ['--host "$HOST" --port "$PORT"']
        words += [f"--context-length {self.max_model_len}"] if self.max_model_len else []
        words += [f"--tp-size {self.tensor}"]
        words += [f"--pp-size {self.pipeline_parallel}"] if self.pipeline_parallel > 1 else []
        if self.nodes > 1:
            words += [f'--nnodes {self.nodes} --node-rank "$NODE_RANK" --dist-init-addr "$HEAD:$HEAD_PORT"']
        return words

    def _trtllm(self) -> list[str]:
        words = ["trtllm-llmapi-launch"] if self.uses_mpi else []
        words += ['trtllm-serve "$MODEL" --host "$HOST" --port "$PORT"']
        words += [f"--max_seq_len {self.max_model_len}"] if self.max_model_len else []
        words += [f"--tp_size {self.tensor}"]
        return words + ([f"--pp_size {self.pipeline_parallel}"] if self.pipeline_parallel > 1 else [])

    def _openmath(self) -> list[str]:
        words = [
            'openmath serve "$MODEL" --name "$NAME" --host "$HOST" --port "$PORT" --start-seconds "$START_SECONDS"'
        ]
        words += [f"--max-context {self.max_model_len}"] if self.max_model_len else []
        return words + (["--device cuda"] if self.gpus else [])

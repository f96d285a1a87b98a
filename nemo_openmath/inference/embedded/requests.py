"""A request inside the embedded engine, and the totals of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from nemo_openmath.core.engine import Completion, Finish, Sampling
from nemo_openmath.inference.embedded.decoder import DraftTree

OnDone = Callable[[Completion | BaseException], None]
"""Gets the completion, or what ended the engine."""

OnTokens = Callable[[list[int], list[float]], None]
"""Gets new tokens, and their log-probabilities where they are wanted."""


@dataclass(eq=False, slots=True)
class EngineRequest:
    """One completion to make, from its arrival to its answer. Its callbacks are called in the decoding thread."""

    prompt: np.ndarray  # int32
    sampling: Sampling
    on_done: OnDone
    """Is called once."""
    on_tokens: OnTokens | None = None
    """Is called after each new token, where the request streams."""
    conversation: str | None = None
    deadline: float = float("inf")
    """Time at which the request ends with what it has, on the scheduler's clock."""
    cancelled: bool = False
    row: int = -1
    """Row of a running request; below 0 for one that waits or has ended."""
    computed: int = 0
    """Tokens of :attr:`ids` whose keys and values are in the row."""
    cached: int = 0
    """Prompt tokens that were not computed for this request."""
    order: int = -1
    """Number of the admission: the newest request is paused first."""
    paused_ids: np.ndarray | None = None
    """Prompt and completion so far of a request that gave its row back."""
    paused_logprobs: np.ndarray | None = None
    """Log-probabilities of that completion."""
    source: EngineRequest | None = None
    """A request whose prompt is being computed and begins with ``shared`` tokens that this one begins with too."""
    shared: int = 0

    @property
    def ids(self) -> np.ndarray:
        """The tokens that are computed before the next token is drawn."""
        return self.prompt if self.paused_ids is None else self.paused_ids


@dataclass(slots=True)
class Statistics:
    """Totals since the engine started."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    pauses: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    sample_seconds: float = 0.0
    finished: dict[Finish, int] = field(default_factory=lambda: dict.fromkeys(Finish, 0))
    row_steps: int = 0
    """Steps, of each request that took part in them: each yields a token, and the guesses that were right."""
    drafted: int = 0
    """Guesses that were verified."""
    accepted: list[int] = field(default_factory=list)
    """Guesses that were right and became text, by their place in the row: the next token's, the one's after it, .. ."""

    def draft_metrics(self) -> list[str]:
        """Return the totals of guesses as lines of Prometheus' text format."""
        names = {"row_steps": self.row_steps, "guesses": self.drafted}
        lines = []
        for name, total in names.items():
            lines += [f"# TYPE openmath_draft_{name}_total counter", f"openmath_draft_{name}_total {total}"]
        lines.append("# TYPE openmath_draft_right_total counter")
        return lines + [f'openmath_draft_right_total{{place="{i}"}} {n}' for i, n in enumerate(self.accepted, 1)]

    def draft_line(self) -> str:
        """Return what guesses came to, in a line for a log; empty where none was verified."""
        if not self.drafted:
            return ""
        right = sum(self.accepted)
        return (
            f"guessed tokens: {right:,} of {self.drafted:,} were right, "
            f"{1 + right / self.row_steps:.2f} tokens a step of a request"
        )

    def verified(self, tree: DraftTree, taken: int) -> None:
        """Count the guesses of a tree, of which ``taken`` - 1 became text."""
        self.row_steps += 1
        self.generated_tokens += taken
        self.drafted += len(tree) - 1
        self.right(range(taken - 1), 1)

    def right(self, places: Iterable[int], guesses: int) -> None:
        """Count ``guesses`` that were right at each of ``places`` behind the newest token."""
        for place in places:
            self.accepted += [0] * (place + 1 - len(self.accepted))
            self.accepted[place] += guesses

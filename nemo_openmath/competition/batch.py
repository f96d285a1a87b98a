"""Whether the solutions of a batch can differ at all."""

from __future__ import annotations

from nemo_openmath.competition.trials import Means
from nemo_openmath.core.records.ids import derive_seed


def sameness(means: Means, batch: int, seed: int) -> str | None:
    """Return a sentence for a batch whose solutions are the same, or are so as far as can be told; else None.

    At temperature 0 the solutions of one problem differ by the code budget that their prompt states, and by what the
    engine leaves to chance. The paper's engine left something to it (section 6.3.2); the embedded one does not.
    """
    if means.rollout.temperature > 0 or batch == 1:
        return None
    asked = {means.ask("", derive_seed(seed, "", sample)) for sample in range(batch)}
    if len(asked) >= batch:
        return None
    name, different = means.engine.model, f"{len(asked)} different one" + ("s" if len(asked) > 1 else "")
    wasted = f"{batch - len(asked)} of {batch} solutions"
    if means.engine.capabilities.deterministic:
        return (
            f"warning: greedy solutions (temperature 0) of {name}, whose engine is deterministic, are at most"
            f" {different}: {wasted} of each batch are copies that take time and vote alike;"
            " set solver.rollout.temperature"
        )
    return (
        f"greedy solutions (temperature 0): a batch of {batch} has at most {different}, but for what the engine of"
        f" {name} leaves to chance (paper section 6.3.2); set solver.rollout.temperature where that is nothing"
    )

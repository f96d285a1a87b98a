"""The kinds of stages by the name that recipes use."""

from __future__ import annotations

from nemo_openmath.core.stage.contract import Stage

_KINDS: dict[str, type[Stage]] = {}


def register(stage: type[Stage]) -> type[Stage]:
    """Make a stage usable in recipes under its ``kind``. Raises ValueError for a second stage of one kind."""
    if (known := _KINDS.setdefault(stage.kind, stage)) is not stage:
        classes = " and ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in (known, stage))
        raise ValueError(f"{classes} are both called {stage.kind!r}; give one of them another `kind`")
    return stage


def stage_kinds() -> dict[str, type[Stage]]:
    """Return the registered stages by their kind."""
    return dict(sorted(_KINDS.items()))

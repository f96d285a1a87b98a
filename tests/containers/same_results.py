"""Two runs of the smoke recipe: all stages but those that measure time or names must have equal digests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

VARY = {"tokens1", "tokens2", "packs1", "packs2", "train1", "train2", "competition"}
"""Their files hold times, or name files with times. What they lead to (students, results) must not differ."""


def main() -> None:
    """Print how many stages are equal; end with 1 where another differs."""
    first, second = (_digests(Path(argument)) for argument in sys.argv[1:3])
    differ = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    print(
        f"{len(first) - len(differ)} of {len(first)} stages are equal, byte for byte; not: {', '.join(sorted(differ))}"
    )
    sys.exit(bool(differ - VARY))


def _digests(run: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["digest"] for path in run.glob("*/manifest.json")}


if __name__ == "__main__":
    main()

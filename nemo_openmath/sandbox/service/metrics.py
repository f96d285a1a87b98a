"""Counters and a histogram in Prometheus' text format; and log lines, one JSON object each."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate

import orjson

_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_PREFIX = "openmath_sandbox_"


class Metrics:
    """Counts ``count`` events by name and label, observes the seconds of executions, and renders both with the gauges
    of now."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._buckets = [0] * (len(_BUCKETS_S) + 1)
        self._seconds = 0.0

    def count(self, name: str, **labels: object) -> None:
        """Add one to the counter ``name``, which ends in ``_total``. Label values are words of ours."""
        self._counts[name, ",".join(f'{key}="{value}"' for key, value in labels.items())] += 1

    def observe(self, seconds: float) -> None:
        """Add the seconds of an execution."""
        self._buckets[bisect_left(_BUCKETS_S, seconds)] += 1
        self._seconds += seconds

    def render(self, gauges: Mapping[str, float]) -> str:
        """Return all metrics in the text format of Prometheus."""
        lines = []
        for name, value in gauges.items():
            lines += [f"# TYPE {_PREFIX}{name} gauge", f"{_PREFIX}{name} {value}"]
        previous = ""
        for (name, labels), number in sorted(self._counts.items()):
            lines += [f"# TYPE {_PREFIX}{name} counter"] if name != previous else []
            lines.append(f"{_PREFIX}{name}{{{labels}}} {number}" if labels else f"{_PREFIX}{name} {number}")
            previous = name
        name = _PREFIX + "execution_seconds"
        lines.append(f"# TYPE {name} histogram")
        bounds = [*map(str, _BUCKETS_S), "+Inf"]
        totals = list(accumulate(self._buckets))
        lines += [f'{name}_bucket{{le="{bound}"}} {total}' for bound, total in zip(bounds, totals, strict=True)]
        lines += [f"{name}_sum {self._seconds}", f"{name}_count {totals[-1]}"]
        return "\n".join(lines) + "\n"


LOG = logging.getLogger("nemo_openmath.sandbox.service")


def log(event: str, level: int = logging.INFO, **facts: object) -> None:
    """Write one structured log record; never code, output or tokens."""
    LOG.log(level, event, extra={"facts": facts})


class JSONLines(logging.Formatter):
    """Formats a record as one JSON object: time (Unix seconds), level, event, facts."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()

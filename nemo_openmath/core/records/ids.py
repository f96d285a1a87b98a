"""Content-derived ids: the same content has the same id on every machine, in every run.

Joins between stages go by id, never by line number or file order, so sharding, restarts and reordering are harmless.
"""

from __future__ import annotations

import hashlib

import orjson


def content_id(kind: str, *parts: object) -> str:
    """Return ``kind-`` and 128 bits of BLAKE2b over the canonical JSON (sorted keys) of ``parts``."""
    payload = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
    return f"{kind}-{hashlib.blake2b(payload, digest_size=16).hexdigest()}"


def derive_seed(seed: int, *parts: object) -> int:
    """Return an independent seed in [0, 2**31) for each (seed, parts)."""
    return int(content_id("seed", seed, *parts).rsplit("-", 1)[1][:12], 16) % 2**31


def unit_key(unit: str) -> int:
    """Return the 64-bit key of a unit of work. A restarted writer keeps it in memory for each finished unit."""
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest(), "big")


def partition_of(name: str, partitions: int) -> int:
    """Return to which of ``partitions`` parts of the work a problem, a thread or another unit belongs. It is decided by
    its id, so every one of them belongs to one part, whoever asks."""
    return unit_key(name) % partitions if partitions > 1 else 0

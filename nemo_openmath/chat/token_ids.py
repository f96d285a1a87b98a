"""Token ids in three bytes each: how records hold them.

A long solution has some nine thousand ids. As JSON integers they are more than half of its line, and nearly all of the
time that reading it takes. In files they are one text: base64 of three bytes an id, the lowest first. The text is
checked when it is read; integers are made of it where somebody asks for them.
"""

from __future__ import annotations

import binascii
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

_BYTES = 3
_END = 1 << 8 * _BYTES  # the first id that three bytes do not hold


class TokenIds(Sequence[int]):
    """A sequence of token ids, each in [0, 2**24), which takes three bytes an id. It equals a tuple of the same ids."""

    __slots__ = ("_packed",)

    def __init__(self, ids: Sequence[int] = ()):
        """Raises ValueError where an id is no integer in [0, 2**24)."""
        try:
            wide = np.frombuffer(array("I", ids), np.uint32)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"token ids: {error}") from error
        if len(wide) and (highest := int(wide.max())) >= _END:
            raise ValueError(f"token ids: {highest} is more than three bytes hold")
        self._packed = wide.astype("<u4", copy=False).view(np.uint8).reshape(-1, 4)[:, :_BYTES].tobytes()

    @classmethod
    def from_text(cls, text: str) -> TokenIds:
        """Read what :meth:`to_text` wrote. Raises ValueError where it is something else."""
        try:
            return cls._of(binascii.a2b_base64(text, strict_mode=True))
        except ValueError as error:
            raise ValueError(f"token ids: not base64 ({error})") from error

    def to_text(self) -> str:
        """Return the ids as records hold them: base64, with its padding, of three bytes an id."""
        return binascii.b2a_base64(self._packed, newline=False).decode()

    @classmethod
    def _of(cls, packed: bytes) -> TokenIds:
        if len(packed) % _BYTES:
            raise ValueError(f"token ids: {len(packed)} bytes are no whole number of ids")
        ids = cls()
        ids._packed = packed
        return ids

    def _tuple(self) -> tuple[int, ...]:
        wide = np.zeros((len(self), 4), np.uint8)
        wide[:, :_BYTES] = np.frombuffer(self._packed, np.uint8).reshape(-1, _BYTES)
        return tuple(wide.view("<u4").ravel().tolist())

    def __len__(self) -> int:
        return len(self._packed) // _BYTES

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        place = range(len(self))[index]
        if isinstance(place, int):
            return int.from_bytes(self._packed[place * _BYTES : (place + 1) * _BYTES], "little")
        if place.step == 1:
            return self._of(self._packed[place.start * _BYTES : place.stop * _BYTES])
        return self._tuple()[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._tuple())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenIds):
            return self._packed == other._packed
        return self._tuple() == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._tuple())

    def __repr__(self) -> str:
        return f"TokenIds({self._tuple()})"

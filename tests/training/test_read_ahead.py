"""The next batch is read by a thread, in order; what reading raises comes at its step's turn."""

from __future__ import annotations

import threading

import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.training.read_ahead import read_ahead


def test_batches_are_read_ahead_in_order_and_errors_keep_their_turn() -> None:
    asked: list[int] = []
    here = threading.Event()

    def read(step: int) -> int:
        asked.append(step)
        if step == 4:
            here.set()
            raise UserError("checksum differs", file="00000.tokens", row=7)
        return 10 * step

    with read_ahead(read, range(2, 6)) as batches:
        assert next(batches) == 20
        assert next(batches) == 30
        assert here.wait(300)  # read while this one is computed
        with pytest.raises(UserError, match=r"^00000\.tokens:7: checksum differs"):
            next(batches)
    assert asked == [2, 3, 4]  # and nothing further
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
    with read_ahead(read, range(3, 3)) as none:
        assert list(none) == []
    with read_ahead(read, range(2)) as all_of_them:
        assert list(all_of_them) == [0, 10]

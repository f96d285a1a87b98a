"""What a request need not compute: tokens that another row, or the prefix store, has in its cache already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nemo_openmath.core.engine import Finish
from nemo_openmath.inference.embedded.decoder import Decoder
from nemo_openmath.inference.embedded.prefix import Prefix, PrefixStore
from nemo_openmath.inference.embedded.requests import EngineRequest
from nemo_openmath.inference.embedded.rows import RowTable

WORTH_COPYING = 16  # tokens; shorter common prefixes are computed again


class PrefixSharing:
    """Finds the longest prefix of a request that is in some cache, and keeps what later requests may begin with."""

    def __init__(self, decoder: Decoder, rows: RowTable, store: PrefixStore):
        self._decoder, self._rows, self._store = decoder, rows, store

    def take_over(self, request: EngineRequest, running: Sequence[EngineRequest]) -> None:
        """Copy the longest prefix that is in the store or in a row of ``running`` to the request's row, or note the
        request that will have it."""
        usable = len(request.ids) - 1  # the last token's logits are needed
        entry, stored = self._store.find(request.ids[:usable], request.conversation)
        closest, common = self._closest(request, usable, running)
        if closest is not None and common > stored:
            if closest.computed < min(common, len(closest.ids)) and common - stored >= WORTH_COPYING:
                request.source, request.shared = closest, common
            elif min(common, self._rows.in_cache(closest)) >= max(stored, WORTH_COPYING):
                request.computed = min(common, self._rows.in_cache(closest))
                self._decoder.copy_row(closest.row, request.row, request.computed)
        if request.source is None and request.computed == 0 and entry is not None and stored >= WORTH_COPYING:
            self._decoder.load_row(request.row, entry.keys, entry.values, stored)
            request.computed = stored
            if entry.conversation is not None and entry.conversation == request.conversation:
                self._store.drop(entry)  # this row holds it now, and will put it back longer
        if request.paused_ids is None:
            request.cached = request.computed

    def _closest(
        self, request: EngineRequest, usable: int, running: Sequence[EngineRequest]
    ) -> tuple[EngineRequest | None, int]:
        """The running request that shares the longest prefix with the request, and that prefix's length."""
        n = len(running)
        if not n or not usable:
            return None, 0
        begins = np.flatnonzero(self._rows.ids[:n, 0] == request.ids[0])
        if not len(begins):
            return None, 0
        same = self._rows.ids[begins, :usable] == request.ids[:usable]
        common = np.where(same.all(1), usable, (~same).argmax(1))
        common = np.minimum(common, self._rows.length[begins])
        best = int(common.argmax())
        return running[begins[best]], int(common[best])

    def waits(self, request: EngineRequest) -> bool:
        """Tell whether the request waits for the owner of its prefix. Once the owner has computed the prefix it is
        copied; where the owner is gone, it is computed here."""
        source = request.source
        if source is None:
            return False
        if source.row >= 0 and source.computed < min(request.shared, len(source.ids)):
            return True
        request.source = None
        if source.row < 0:
            self.take_over(request, ())  # another row may be waiting for this one
            return False
        request.computed = min(request.shared, self._rows.in_cache(source))
        if request.paused_ids is None:
            request.cached = request.computed
        self._decoder.copy_row(source.row, request.row, request.computed)
        return False

    def keep_paused(self, request: EngineRequest) -> None:
        """Store what the row of a request that is paused holds."""
        length = self._rows.in_cache(request)
        if length >= WORTH_COPYING:
            self._store.put(Prefix(request.ids[:length].copy(), *self._decoder.save_row(request.row, length), None))

    def keep_finished(self, request: EngineRequest, finish: Finish, stop: str | None) -> None:
        """Store what a later request may begin with: the conversation if it can go on, else the prompt."""
        have = self._rows.in_cache(request)
        # one that has stop strings and ended by none of them is a loop with tools that is over
        waits = stop is not None or (request.conversation is not None and not request.sampling.stop)
        goes_on = waits and finish is not Finish.CANCELLED
        length = have if goes_on else min(have, len(request.prompt))
        ids = self._rows.ids[request.row, :length].copy()
        if length < WORTH_COPYING:
            return
        if not goes_on:
            entry, common = self._store.find(ids, None)
            if entry is not None and common >= length - WORTH_COPYING:
                return
        keys, values = self._decoder.save_row(request.row, length)
        self._store.put(Prefix(ids, keys, values, request.conversation if goes_on else None))

"""Several token folders seen as one list of samples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.tokens.token_file import Sample, TokenFolder


class Samples:
    """Token folders laid end to end, n samples: sample numbers 0..n-1 go across all of them.

    Raises UserError where the folders were made with different tokenizers.
    """

    def __init__(self, folders: Sequence[TokenFolder]):
        self.folders = list(folders)
        if len({f.tokenizer for f in folders}) > 1:
            raise UserError("made with another tokenizer than the first", file=folders[-1].folder)
        self._ends = list(accumulate(len(f) for f in folders))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, sample: int) -> Sample:
        folder, row = self._find(sample)
        return folder[row]

    def length(self, sample: int) -> int:
        """Return the tokens of a sample, from the index alone."""
        folder, row = self._find(sample)
        return folder.length(row)

    def lengths(self) -> NDArray[np.int64]:
        """Return the tokens of each sample, [n]."""
        return np.concatenate([f.lengths() for f in self.folders]).astype(np.int64)

    def padded_lengths(self, pad_multiple: int) -> NDArray[np.int64]:
        """Return the tokens of each sample, [n], rounded up to a multiple of ``pad_multiple``."""
        return -(-self.lengths() // pad_multiple) * pad_multiple

    def prompt_lengths(self) -> NDArray[np.int64]:
        """Return the tokens of each sample's prompt, [n]."""
        return np.concatenate([f.prompt_lengths() for f in self.folders]).astype(np.int64)

    def target_lengths(self) -> NDArray[np.int64]:
        """Return the target tokens of each sample, [n]."""
        return np.concatenate([f.target_lengths() for f in self.folders]).astype(np.int64)

    def id_hashes(self) -> NDArray[np.uint64]:
        """Return the hash of each sample's id, [n]."""
        return np.concatenate([f.id_hashes() for f in self.folders]).astype(np.uint64)

    @cached_property
    def groups(self) -> list[str]:
        """Names of the groups that occur, in alphabetical order."""
        return sorted({name for f in self.folders for name in f.groups})

    def group_codes(self) -> NDArray[np.uint16]:
        """Return the index into ``groups`` of each sample, [n]."""
        codes = [np.array([self.groups.index(g) for g in f.groups] or [0], np.uint16) for f in self.folders]
        return np.concatenate([code[f.group_codes()] for code, f in zip(codes, self.folders, strict=True)])

    def _find(self, sample: int) -> tuple[TokenFolder, int]:
        at = bisect_right(self._ends, sample)
        return self.folders[at], sample - (self._ends[at - 1] if at else 0)

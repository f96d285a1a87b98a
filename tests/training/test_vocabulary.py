"""A batch whose tokens the model does not know is refused."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.training.forward_backward import check_tokens


def test_a_token_outside_the_vocabulary_names_its_sample() -> None:
    tokens = np.array([1, 2, 3, 4, 5, 1000, 6], np.int32)
    ends = np.array([0, 4, 7], np.int32)
    pack = Pack(tokens, np.roll(tokens, -1), np.ones(7, np.bool_), ends, ("5/0", "5/1"))
    check_tokens([pack], 1001)
    with pytest.raises(UserError, match="sample 5/1: token 1000 is outside the model's vocabulary of 1000; "):
        check_tokens([pack], 1000)

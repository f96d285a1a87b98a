"""A batch whose tokens the model does not know is refused."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_openmath.core.errors import UserError
from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.training.forward_backward import check_tokens


@pytest.mark.parametrize("part", ["tokens", "labels"])
@pytest.mark.parametrize("token", [1000, -1])
def test_a_token_outside_the_vocabulary_names_its_sample(part: str, token: int) -> None:
    tokens, ends = np.arange(7, dtype=np.int32), np.array([0, 4, 7], np.int32)
    tokens[2] = 999
    pack = Pack(tokens, tokens.copy(), np.ones(7, np.bool_), ends, ("5/0", "5/1"))
    check_tokens([pack], 1000)
    getattr(pack, part)[5] = token
    with pytest.raises(UserError, match=f"sample 5/1: token {token} is outside the model's vocabulary of 1000; "):
        check_tokens([pack], 1000)

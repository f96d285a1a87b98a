"""The base checkpoint's script, end to end with the real packing and trainer, on a minute's worth of text."""

import json
from pathlib import Path

import pytest

from nemo_openmath.demo.base import BaseConfig, make_base


@pytest.mark.slow
def test_a_checkpoint_is_made_that_transformers_loads(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sizes = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 64}
    config = BaseConfig(first_tokens=5_000, tokens=20_000, processes=1, **sizes)
    facts = make_base(tmp_path / "base", config, tmp_path / "work")
    metrics = [json.loads(line) for line in (tmp_path / "work/training/metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert sum(row["samples"] for row in metrics) == facts["documents"]
    model, tokenizer = (c.from_pretrained(tmp_path / "base") for c in (AutoModelForCausalLM, AutoTokenizer))
    assert model.num_parameters() == facts["parameters"]
    ids = torch.tensor([tokenizer("Find the sum of the digits of 7^10.").input_ids])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert loss < torch.log(torch.tensor(float(model.config.vocab_size)))

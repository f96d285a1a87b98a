"""Digests of models and data that a run reads."""

import os
from pathlib import Path

from nemo_openmath.core.records.lineage import digest_tree, remembered_digest


def test_a_digest_is_remembered_until_the_files_change(tmp_path: Path) -> None:
    model, memory = tmp_path / "model", tmp_path / "run" / ".digests"
    (model / "deep").mkdir(parents=True)
    (model / "a.safetensors").write_bytes(b"weights")
    (model / "deep" / "b.json").write_bytes(b"{}")
    first = remembered_digest(model, memory)
    assert first == digest_tree(model)

    (note,) = memory.iterdir()
    note.write_text(note.read_text().replace(first, "remembered"))
    assert remembered_digest(model, memory) == "remembered"

    (model / "a.safetensors").write_bytes(b"weightz")  # the same size
    os.utime(model / "a.safetensors", ns=(0, 1))  # whatever the clock's grain
    assert remembered_digest(model, memory) == digest_tree(model) != first
    (model / "deep" / "b.json").rename(model / "deep" / "c.json")
    assert remembered_digest(model, memory) == digest_tree(model)
    note.write_bytes(b"torn")
    assert remembered_digest(model, memory) == digest_tree(model)

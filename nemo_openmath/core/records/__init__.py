"""What travels between stages: typed records with content-derived ids, and the append-only store that keeps them."""

from nemo_openmath.core.records.ids import content_id, unit_key
from nemo_openmath.core.records.manifest import Manifest, digest_of_lines, read_manifest, write_json
from nemo_openmath.core.records.store import Drop, RecordWriter, read_drops, read_records
from nemo_openmath.core.records.types import Generation, Group, Mode, Problem, Record, SftRow, Thread

__all__ = [
    "Drop",
    "Generation",
    "Group",
    "Manifest",
    "Mode",
    "Problem",
    "Record",
    "RecordWriter",
    "SftRow",
    "Thread",
    "content_id",
    "digest_of_lines",
    "read_drops",
    "read_manifest",
    "read_records",
    "unit_key",
    "write_json",
]

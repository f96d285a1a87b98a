"""What travels between stages: typed records with content-derived ids, and the append-only store that keeps them.

types.py        the records: thread, problem, generation, group, SFT row
notes.py        what a selection and a submission say beyond a generation
ids.py          ids and seeds from content, shards by id; key_set.py: millions of keys in little memory
store.py        the append-only store of one folder; recovery.py: what it holds after a kill or a damage
manifest.py     what a finished stage promises; lineage.py: what an artifact was made from
exact_json.py   JSON without loss
readers/        rows of other people's files
"""

from nemo_openmath.core.records.encoding import EncodedRecord
from nemo_openmath.core.records.ids import content_id, unit_key
from nemo_openmath.core.records.manifest import Manifest, read_manifest, write_json
from nemo_openmath.core.records.store import Drop, RecordWriter, read_drops, read_records
from nemo_openmath.core.records.sums import digest_of_lines
from nemo_openmath.core.records.types import Generation, Group, Mode, Problem, Record, SftRow, Thread

__all__ = [
    "Drop",
    "EncodedRecord",
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

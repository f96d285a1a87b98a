"""Which files of a folder hold data, and what format a file has."""

from __future__ import annotations

import codecs
from pathlib import Path

from nemo_openmath.core.errors import UserError, refuse_device
from nemo_openmath.core.records import exact_json
from nemo_openmath.core.records.manifest import MANIFEST, PLAN, read_manifest
from nemo_openmath.core.records.readers.lines import PACKED, is_compressed, open_file, read_errors

_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv")
_ROWS = (*_LINES, ".json", *_TABLES, ".parquet")
_OTHER_TABLES = (".arrow", ".feather", ".orc", ".avro", ".xlsx", ".xls", ".ods", ".db", ".sqlite", ".sqlite3")
_OTHER_DATA = (".pkl", ".pickle", ".npy", ".npz", ".h5", ".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z")
_UNREADABLE = _OTHER_TABLES + _OTHER_DATA
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # beside data, not data
_MAGIC = {
    b"PAR1": "Parquet", b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard", b"PK\x03\x04": "a zip archive or .xlsx",
    b"ARROW1": "Arrow", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", b"BZh": "bzip2",
    b"\xfd7zXZ": "xz", b"SQLite": "SQLite", b"\x89HDF": "HDF5",
}  # fmt: skip
_SAVE = "save it as JSON Lines, CSV or Parquet"
_HEAD = 1 << 16  # bytes that are looked at to see what a file is


def data_files(path: str | Path) -> list[Path]:
    """Return the file, or every data file below a folder in name order; of the folder of a stage its records alone.

    Raises UserError
    - where there is none,
    - where a folder holds data in a format that is not read, or a file both plain and compressed,
    - for the folder of a whole run, and for a stage that has not finished or makes no records.
    """
    path = Path(path)
    if not path.exists():
        raise UserError("no such file", file=path, remedy="check the path")
    if not path.is_dir():
        refuse_device(path)
        return [path]
    if stages := sorted(p.parent.name for p in path.glob("*/plan.json")):
        raise UserError(
            "the folder of a run, not of data", file=path, remedy=f"name one of its stages: {', '.join(stages)}"
        )
    stage_folders = {p.parent for p in path.rglob("journal-*-of-*.jsonl") if not _hidden(p, path)}
    if path not in stage_folders and (path / PLAN).is_file() and (manifest := read_manifest(path)) is not None:
        remedy = "name the folder of a stage that makes records, or a file"
        raise UserError(f"the folder of {manifest.stage}, which makes no records", file=path, remedy=remedy)
    for folder in sorted(stage_folders):
        if not (folder / MANIFEST).is_file():
            raise UserError(
                "the folder of a stage that has not finished",
                file=folder,
                remedy="run the stage to its end, or name one of its part files",
            )
    files = []
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path)):
        if file.parent in stage_folders and not (file.name.startswith("part-") and file.suffix == ".jsonl"):
            continue
        if suffix_of(file) in _UNREADABLE:
            raise UserError("a format that is not read", file=file, remedy=_SAVE)
        if suffix_of(file) in _ROWS and file.name not in _ABOUT:
            files.append(file)
    plain: dict[str, Path] = {}
    for file in files:
        name = str(file).removesuffix(".gz").removesuffix(".zst")
        if (first := plain.setdefault(name, file)) is not file:
            raise UserError(f"the same as {first.name} by its name", file=file, remedy="keep one of the two")
    if not files:
        raise UserError("no .jsonl, .json, .csv (each also .gz, .zst) or .parquet file in this folder", file=path)
    return files


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def format_of(file: Path) -> str:
    """Return the format of a file: ``parquet``, ``table`` (CSV), ``document`` (one JSON value) or ``lines`` (JSON
    Lines).

    It is seen by name and by the first bytes: a JSON array is a document under any name; Parquet and CSV are never
    taken for lines. Raises UserError for what is none of them.
    """
    suffix = suffix_of(file)
    head = _head(file)
    for magic, what in _MAGIC.items():
        if not head.startswith(magic) or (what == "Parquet" and suffix in ("", ".parquet")):
            continue
        remedy = "save it as UTF-8" if what == "UTF-16" else _SAVE
        raise UserError(f"this is {what}, not {suffix or 'JSON Lines'}", file=file, remedy=remedy)
    if suffix == ".parquet" or head.startswith(b"PAR1"):
        if is_compressed(file):
            raise UserError("a compressed Parquet file", file=file, remedy="decompress it")
        return "parquet"
    if suffix in _UNREADABLE:
        raise UserError("a format that is not read", file=file, remedy=_SAVE)
    if suffix in _TABLES:
        return "table"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        return "document"
    first, newline, _ = start.partition(b"\n")
    return "document" if suffix == ".json" and newline and not _is_object(first) else "lines"


def _is_object(line: bytes) -> bool:
    """Return whether a line is a whole JSON object: then the file has one object a line."""
    try:
        return isinstance(exact_json.loads(line), dict)
    except ValueError:
        return False


def suffix_of(path: Path) -> str:
    """Return the suffix below that of a compression, in lower case: ``.jsonl`` of ``x.jsonl.gz``."""
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def _head(path: Path) -> bytes:
    """Return some of the first bytes; none where they cannot be read, for reading the rows says why."""
    try:
        with open_file(path) as file:
            return file.read1(_HEAD)  # type: ignore[attr-defined]
    except read_errors():
        return b""

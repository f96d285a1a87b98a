"""``openmath records``: look at records, search their texts, write them to a file, check that all is there."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_openmath.cli.common import AGAIN, NOTHING_KEPT, at_least, verb
from nemo_openmath.cli.streams import has_reader

if TYPE_CHECKING:
    from nemo_openmath.data.records.stored import Condition, RecordFolder, StoredRecord

_JSON = "the records as they are, with their transcripts, a line of JSON each"
_DIR = "folder of a stage, finished or not; of an import"
_WHERE = "only such records: verdict=not_equal, completion_tokens>1000, extra.source!=forum; given again: all hold"


def add(groups: Any) -> None:
    records = groups.add_parser(
        "records", help="look at records, search, export and check them", description="Records of a stage."
    )
    verbs = records.add_subparsers(title="verbs", metavar="VERB", required=True)

    show = verb(verbs, "show", "print whole records: fields, prompt, reasoning, code, output", _show, interrupted=AGAIN)
    show.add_argument("folder", type=Path, metavar="DIR", help=_DIR)
    show.add_argument("ids", nargs="*", metavar="ID", help="of a record, or its beginning; without: the first record")
    show.add_argument("--json", action="store_true", help=_JSON)

    head = verb(verbs, "head", "print a line about each of the first records", _head, interrupted=AGAIN)
    head.add_argument("folder", type=Path, metavar="DIR", help=_DIR)
    head.add_argument("-n", type=at_least(1), default=10, dest="number", metavar="N", help="records")
    head.add_argument("--where", action="append", default=[], metavar="FIELD=VALUE", help=_WHERE)
    head.add_argument("--json", action="store_true", help=_JSON)

    grep = verb(
        verbs, "grep", "search the texts of records: prompts, reasoning, code, output", _grep, interrupted=AGAIN
    )
    grep.add_argument("pattern", metavar="PATTERN", help="regular expression of Python")
    grep.add_argument("folders", type=Path, nargs="+", metavar="DIR", help=_DIR)
    grep.add_argument("-i", action="store_true", dest="ignore_case", help="capitals are small letters")
    grep.add_argument("-n", type=at_least(1), dest="number", metavar="N", help="stop after N records that match")
    grep.add_argument("--where", action="append", default=[], metavar="FIELD=VALUE", help=_WHERE)
    grep.add_argument("--json", action="store_true", help="a line of JSON for each text that matches")

    export = verb(
        verbs, "export", "write records with their transcripts to one file", _export, interrupted=NOTHING_KEPT
    )
    export.add_argument("folder", type=Path, metavar="DIR", help=_DIR)
    export.add_argument("output", type=Path, metavar="OUT", help="its name ends in .jsonl, .jsonl.zst or .parquet")
    export.add_argument("--where", action="append", default=[], metavar="FIELD=VALUE", help=_WHERE)
    export.add_argument("--replace", action="store_true", help="take the place of a file that is there")

    check = verb(
        verbs, "check", "read every record and its transcript, compare with the manifest", _check, interrupted=AGAIN
    )
    check.add_argument("folders", type=Path, nargs="+", metavar="DIR", help=_DIR)


def _open(path: Path) -> RecordFolder:
    from nemo_openmath.data.records.stored import RecordFolder

    folder = RecordFolder(path)
    if note := folder.note():
        print(note, file=sys.stderr)
    return folder


def _conditions(options: argparse.Namespace) -> list[Condition]:
    from nemo_openmath.data.records.stored import Condition

    return [Condition.parse(text) for text in options.where]


def _show(options: argparse.Namespace) -> None:
    from nemo_openmath.data.records.shown import full_text

    folder = _open(options.folder)
    records = folder.with_names(options.ids) if options.ids else islice(folder.records(), 1)
    for number, record in enumerate(records):
        if options.json:
            _print_json(record)
        else:
            print(f"{chr(10) * (number > 0)}{full_text(record)}")


def _head(options: argparse.Namespace) -> None:
    from nemo_openmath.data.records.shown import summary_line

    width = shutil.get_terminal_size((160, 24)).columns
    for record in islice(_open(options.folder).records(_conditions(options)), options.number):
        if options.json:
            _print_json(record)
        else:
            print(summary_line(record, width))


def _print_json(record: StoredRecord) -> None:
    sys.stdout.write(record.joined().decode())


def _grep(options: argparse.Namespace) -> None:
    import orjson

    from nemo_openmath.data.records.grep import compile_pattern, matches

    pattern, where = compile_pattern(options.pattern, ignore_case=options.ignore_case), _conditions(options)
    folders = [_open(path) for path in options.folders]
    read = matching = 0
    for folder, record in _until_nobody_reads((f, r) for f in folders for r in f.records(where)):
        read += 1
        places = matches(record, pattern)
        for match in places:
            if options.json:
                print(orjson.dumps({"folder": str(folder.path), **match.to_json()}).decode(), flush=True)
            else:
                more = f"  (and {match.count - 1} more)" if match.count > 1 else ""
                at = f"{folder.path}: " if len(folders) > 1 else ""
                print(f"{at}{match.id}  {match.place}: {match.excerpt}{more}", flush=True)
        matching += bool(places)
        if matching == options.number:
            break
    print(f"{matching:,} of {read:,} records match", file=sys.stderr)


def _until_nobody_reads(records: Iterator[Any]) -> Iterator[Any]:
    for record in records:
        if not has_reader():
            return
        yield record


def _export(options: argparse.Namespace) -> None:
    from nemo_openmath.data.records.export import export
    from nemo_openmath.grading.majority import majority

    folder = _open(options.folder)
    number = export(folder, options.output, majority, where=_conditions(options), replace=options.replace)
    print(f"{options.output}: {number:,} records, {options.output.stat().st_size:,} bytes")


def _check(options: argparse.Namespace) -> None:
    from nemo_openmath.data.records.check import check_folder, refuse_damage

    checked = []
    for path in options.folders:
        folder = _open(path)
        seen = check_folder(folder)
        checked.append((folder, seen))
        for line in seen.lines(folder):
            print(line)
    refuse_damage(checked)

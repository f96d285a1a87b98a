"""A dataset for the hub: the published columns by id, the same bytes however the records lie, and a card."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from huggingface_hub import DatasetCard
from pyarrow import parquet

from nemo_openmath.cli.main import run as command
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.core.merging import count_records
from nemo_openmath.core.records import Drop, Generation, Manifest, Problem, Record, RecordWriter, read_records
from nemo_openmath.core.records.ids import partition_of
from nemo_openmath.core.records.manifest import write_manifest
from nemo_openmath.core.records.store import folder_sums
from nemo_openmath.data.records import published
from nemo_openmath.data.records.published import publish_problems
from nemo_openmath.grading.majority import majority
from nemo_openmath.recipe.dataset_card import CardSettings
from nemo_openmath.recipe.dataset_export import export_dataset
from nemo_openmath.synthesis.problems.read import ReadFilesConfig, ReadProblems
from tests.support.services import stage_context

HOSTILE = "</script><script>alert(1)</script> | \0 {{ x }} \u202e"
PROBLEMS = [
    Problem.make(
        f"Find x in {n}. {HOSTILE if n == 3 else ''}",
        expected_answer=None if n % 3 == 0 else str(n),
        problem_type="no_answer_extracted" if n % 3 == 0 else "has_answer_extracted",
        source="olympiads",
        pass_rate=None if n % 2 else n / 64,
        parents=(f"thread-{n}",),
    )
    for n in range(40)
] + [Problem.make("x" * 200_000, expected_answer="0.10", problem_type="converted_proof")]


def finished(
    folder: Path,
    kind: str,
    records: Sequence[Record],
    partitions: int = 1,
    drops: Sequence[str] = (),
    **of_manifest: Any,
) -> Path:
    """The folder of a finished stage."""
    for number in range(partitions):
        with RecordWriter(folder, partition=number, partitions=partitions) as writer:
            for at, record in enumerate(records):
                if partition_of(getattr(record, record.owner), partitions) == number:
                    writer.commit(f"unit-{at}", [record])
            for at, reason in enumerate(drops if number == 0 else ()):
                writer.commit(f"dropped-{at}", [], [Drop(reason)])
    sums = folder_sums(folder)
    counts = {"units": sums.units, **count_records(folder, majority), "drops": len(drops)}
    manifest = Manifest(kind, "f", sums.digest, counts, dict(sums.drops), **of_manifest)
    write_manifest(folder, manifest)
    return folder


def made_run(run: Path, problems: Sequence[Problem] = PROBLEMS, partitions: int = 1) -> Path:
    """A run whose last stage of problems is ``problems``."""
    asked = {"engine": "./models/judge", "temperature": 0.0, "templates": {"extract-problems": "t1234"}}
    finished(run / "benchmark", "problems.read_problems", PROBLEMS[:3])
    finished(
        run / "extracted", "problems.extract", problems, drops=["no problem in the post"] * 2 + ["a | <b>reason</b>"],
        config=asked, inputs={"./models/judge": "blake3:abcdef0123456789ff"},
    )  # fmt: skip
    return finished(
        run / "problems", "problems.decontaminate", problems, partitions,
        config=asked | {"templates": {"decontaminate": "t5678"}, "threshold": 0.3},
        inputs={"extracted": "d1", "benchmark": "d2", "./models/judge": "blake3:abcdef0123456789ff"},
        metrics={"wrong_answers_expected": 12.5, "wrong_answers_low": 8.0, "wrong_answers_high": 17.0},
    )  # fmt: skip


def rows_of(dataset: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((dataset / "data").iterdir()) for row in parquet.read_table(file).to_pylist()]


def digest_of(dataset: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted((dataset / "data").iterdir()))).hexdigest()


def test_the_published_columns_in_the_order_of_ids(tmp_path: Path) -> None:
    written = export_dataset(made_run(tmp_path / "run"), tmp_path / "out", CardSettings("mine"))
    ordered = sorted(PROBLEMS, key=lambda problem: problem.id)
    assert rows_of(tmp_path / "out") == [
        {
            "problem": problem.problem,
            "expected_answer": problem.expected_answer,
            "problem_type": problem.problem_type,
            "problem_source": problem.source,
            "pass_rate_72b_tir": "n/a" if problem.pass_rate is None else str(problem.pass_rate),
        }
        for problem in ordered
    ]
    assert (written.rows, written.types["converted_proof"]) == (41, 1)


def test_the_bytes_are_the_same_however_the_records_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made_run(tmp_path / "one")
    export_dataset(folder, tmp_path / "a", CardSettings("mine"))
    turned = [PROBLEMS[0].with_(parents=("thread-x",)), *reversed(PROBLEMS)]  # one of them twice
    export_dataset(made_run(tmp_path / "three", turned, partitions=3), tmp_path / "b", CardSettings("mine"))
    assert digest_of(tmp_path / "a") == digest_of(tmp_path / "b")
    for name, (portion, shard) in {"c": (1, 400 << 20), "d": (3000, 1)}.items():
        monkeypatch.setattr(published.SortedRows.__init__, "__defaults__", (portion,))
        monkeypatch.setattr(published, "SHARD", shard)
        monkeypatch.setattr(published, "_GROUP_ROWS", 4096 if name == "c" else 10)
        (tmp_path / name / "data").mkdir(parents=True)
        files = publish_problems(folder, tmp_path / name / "data", majority).files
        assert len(list((tmp_path / name / "data").iterdir())) == len(files), "nothing else is left"
        assert rows_of(tmp_path / name) == rows_of(tmp_path / "a")
        if name == "c":
            assert digest_of(tmp_path / name) == digest_of(tmp_path / "a")
        else:
            assert [file.name for file in files] == [f"train-{at:05d}-of-00005.parquet" for at in range(5)]


async def test_answers_that_nothing_attributes_are_said(tmp_path: Path) -> None:
    """A column says so of what still has such an answer, and the card how many there are."""
    text = PROBLEMS[0].with_(
        expected_answer="5", problem_type="has_answer_extracted", extra={"answer_unattributed": "5"}
    )
    later = PROBLEMS[1].with_(
        expected_answer="7", problem_type="has_answer_extracted", extra={"answer_unattributed": "5"}
    )
    taken = PROBLEMS[2].with_(
        expected_answer=None, problem_type="no_answer_extracted", extra={"answer_unattributed": "5"}
    )
    for choice, first in (("keep", [text]), ("drop", [])):
        problems = [*first, later, taken]
        run = tmp_path / choice
        config, metrics = (
            {"engine": "m", "unattributed": choice},
            {"answer_unattributed": 1234, "answer_of_another": 56},
        )
        folder = finished(run / "answered", "problems.extract_answers", problems, config=config, metrics=metrics)
        export_dataset(folder, tmp_path / f"{choice}-out", CardSettings("mine"))
        marks = {row["problem"]: row.get("answer_unattributed") for row in rows_of(tmp_path / f"{choice}-out")}
        assert marks == {p.problem: (p is text if first else None) for p in problems}
        card = (tmp_path / f"{choice}-out" / "README.md").read_text()
        assert "Of 1,234 problems of stage `answered`" in card
        assert "For 56 problems of stage `answered` the model gave" in card
        assert ("see `answer_unattributed`" in card, "Their answers were taken away" in card) == (
            bool(first),
            not first,
        )
    context = stage_context({"files": [tmp_path / "keep-out" / "data"]}, tmp_path / "read")
    await ReadProblems(ReadFilesConfig()).run(context)
    folder = finished(
        tmp_path / "again" / "read", "problems.read_problems", list(read_records(tmp_path / "read", Problem))
    )
    export_dataset(folder, tmp_path / "again-out", CardSettings("mine"))
    assert sum(row["answer_unattributed"] for row in rows_of(tmp_path / "again-out")) == 1


def test_the_card_names_the_second_model_and_no_server(tmp_path: Path) -> None:
    asked = {"engine": "m", "templates": {"t": "d1"}, "second_engine": "other", "second_share": 0.05}
    asked["second_server"] = {"url": "http://secret-host:8000/v1", "tokenizer": "base"}
    folder = finished(tmp_path / "run" / "classified", "problems.classify", PROBLEMS, config=asked)
    export_dataset(folder, tmp_path / "out", CardSettings("mine"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `classified` | `other`, too, about 0.05 of the units; it changed no record | `t` | `d1` |" in card
    assert "secret-host" not in card


async def test_what_is_exported_is_read_again(tmp_path: Path) -> None:
    problems = [problem.with_(extra={"used_in_kaggle": n % 2 == 0}) for n, problem in enumerate(PROBLEMS[:5])]
    export_dataset(made_run(tmp_path / "run", problems), tmp_path / "out", CardSettings("mine"))
    assert [row["used_in_kaggle"] for row in rows_of(tmp_path / "out")].count(True) == 3
    context = stage_context({"files": [tmp_path / "out" / "data"]}, tmp_path / "read")
    await ReadProblems(ReadFilesConfig()).run(context)
    read = {
        p.id: (p.problem, p.expected_answer, p.pass_rate, p.source) for p in read_records(tmp_path / "read", Problem)
    }
    assert read == {p.id: (p.problem, p.expected_answer, p.pass_rate, p.source) for p in problems}


def solution(problem: Problem, sample: int) -> Generation:
    text = f"<think>{sample}</think>\nIt is \\boxed{{{problem.expected_answer}}}. {HOSTILE}"
    return Generation(
        id=Generation.make_id(problem.id, "tir", "m", "", {}, 1, sample),
        problem_id=problem.id, mode="tir", model="m", sample=sample, finish="stop",
        transcript={"messages": [], "pieces": [{"author": "model", "text": text}], "ended": True},
    )  # fmt: skip


def test_solutions_stand_with_their_problems(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made_run(run)
    solutions = [solution(problem, sample) for problem in PROBLEMS[5:9] for sample in range(3)]
    folder = finished(run / "kept", "solutions.filter", solutions, inputs={"problems": "d"})
    export_dataset(folder, tmp_path / "out", CardSettings("mine"))
    by_id = {problem.id: problem for problem in PROBLEMS}
    expected = [
        (
            by_id[s.problem_id].problem,
            s.transcript["pieces"][0]["text"],
            "m",
            "tir",
            by_id[s.problem_id].expected_answer,
        )
        for s in sorted(solutions, key=lambda s: (s.problem_id, s.id))
    ]
    columns = ("problem", "generated_solution", "generation_model", "inference_mode", "expected_answer")
    assert [tuple(row[name] for name in columns) for row in rows_of(tmp_path / "out")] == expected
    lost = finished(run / "lost", "solutions.filter", [solution(Problem.make("another"), 0)], inputs={"problems": "d"})
    with pytest.raises(UserError, match="no stage holds the problem of generation"):
        export_dataset(lost, tmp_path / "lost", CardSettings("mine"))
    assert not [path for path in tmp_path.iterdir() if "lost" in path.name], "nothing was left behind"


def test_the_card_says_what_the_lineage_knows(tmp_path: Path) -> None:
    settings = CardSettings(f"My {HOSTILE}", "cc-by-4.0", ("en",))
    export_dataset(made_run(tmp_path / "run"), tmp_path / "out", settings)
    text = (tmp_path / "out" / "README.md").read_text()
    card = DatasetCard(text)
    assert (card.data.license, card.data.language, card.data.size_categories) == ("cc-by-4.0", ["en"], ["n<1K"])
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["configs"][0]["data_files"][0]["path"] == "data/train-*"
    assert front["dataset_info"]["splits"][0]["num_examples"] == 41
    assert [feature["name"] for feature in front["dataset_info"]["features"]] == list(published.OF_PROBLEMS)
    for part in (
        "| `extracted` (problems.extract) | 44 |  | 3 |  | 41 |",
        "| `extracted` | no problem in the post | 2 |",
        "| `extracted` | a \\| &lt;b&gt;reason&lt;/b&gt; | 1 |",
        "| `extracted` | `./models/judge` (`abcdef0123456789`) | `extract-problems` | `t1234` |",
        "threshold: 0.3",
        "| `problems` | `benchmark` | 3 | `d2` |",
        "12.5 wrong answers (8 to 17)",
        "`cc-by-4.0`, as whoever exported",
    ):
        assert part in text, part
    assert "<script>" not in text.partition("\n---\n")[2]
    export_dataset(tmp_path / "run" / "extracted", tmp_path / "raw", CardSettings("mine"))
    raw = (tmp_path / "raw" / "README.md").read_text()
    assert "license" not in yaml.safe_load(raw.split("---\n")[1])
    assert "No licence is stated yet" in raw
    assert "compared with no benchmark" in raw
    with pytest.raises(UserError, match="no identifier of the hub"):
        CardSettings("mine", "CC BY 4.0")


def test_what_cannot_be_exported_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made_run(tmp_path / "run")
    empty = finished(tmp_path / "run" / "empty", "problems.select", [], drops=["other problem type"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for source, output, message in (
        (empty, tmp_path / "new", "there is no record in it"),
        (folder, tmp_path / "mine", "is there already"),
        (folder, folder / "inside", "lies in the folder of a stage"),
        (tmp_path / "nowhere", tmp_path / "new", "nowhere"),
    ):
        if message.startswith("lies"):
            (folder / "plan.json").write_bytes(orjson.dumps({}))
        assert command(["data", "export", str(source), str(output)]) == ExitCode.USER_ERROR
        assert message in capsys.readouterr().err
    assert (tmp_path / "mine" / "file").read_text() == "mine"
    part = next(folder.glob("part-*.jsonl"))
    part.write_bytes(part.read_bytes().replace(b"Find x in 3.", b"Find \\ud800 in.", 1))
    with pytest.raises(UserError, match=r"part-00000-of-00001\.jsonl"):
        export_dataset(folder, tmp_path / "new", CardSettings("mine"))
    assert not (tmp_path / "new").exists()

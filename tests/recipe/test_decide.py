"""`openmath evaluate decide`: what was sampled is kept, an interrupted comparison ends as one that was not."""

from __future__ import annotations

import re
from pathlib import Path

import orjson
import pytest

from nemo_openmath.core.errors import OpenMathError, UserError
from nemo_openmath.core.records import Generation, read_records
from nemo_openmath.core.records.ids import derive_seed
from nemo_openmath.recipe.decide import decide
from nemo_openmath.recipe.decide_file import load_decide_job
from tests.support.engines import BUSY, Reply, ScriptedServer

BASE = Path(__file__).parents[2] / "examples" / "base"


class Solver(ScriptedServer):
    """Solves "What is 0 + i?" with a chance that grows with i; in which order it is asked changes nothing."""

    def __init__(self, gain: float, until: int = 10**9):
        super().__init__(self._solve)
        self._gain, self._until = gain, until

    def _solve(self, question: str) -> Reply:
        if len(self.asked) > self._until:
            return BUSY
        number = int(re.findall(r"0 \+ (\d+)", question)[0])
        draw = derive_seed(self.asked[-1].seed or 0, "draw") / 2**31
        right = draw < min(1.0, number / 12 + self._gain)
        return Reply(f"It is \\boxed{{{number if right else number + 1}}}.", tokens=10 + number)


def write_job(folder: Path, a: ScriptedServer, b: ScriptedServer, **settings: object) -> Path:
    rows = [{"problem": f"What is 0 + {i}?", "expected_answer": str(i)} for i in range(12)]
    (folder / "problems.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    given = {"delta": 0.05, "samples": 32} | settings
    engine = "{{kind: http, urls: [{}], model: scripted, server: openai, api: chat, tokenizer: {}, attempts: 1}}"
    path = folder / "decide.yaml"
    path.write_text(
        "problems: ./problems.jsonl\n"
        + f"a: {{label: old, engine: {engine.format(a.url, BASE)}}}\n"
        + f"b: {{label: new, engine: {engine.format(b.url, BASE)}}}\n"
        + "".join(f"{name}: {value}\n" for name, value in given.items())
    )
    return path


async def test_a_better_model_is_found_with_fewer_samples_and_an_interruption_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Solver(0.0) as a, Solver(0.4) as b, Solver(0.4, until=20) as dying:
        path = write_job(tmp_path, a, b)
        await decide(path, (), tmp_path / "whole")
        said = capsys.readouterr().out
        result = orjson.loads((tmp_path / "whole" / "result.json").read_bytes())
        assert result["verdict"] == "b_better"
        assert "decided: new is better than old" in said
        assert 0 < result["low"] < 5 / 12 < result["high"]
        total = sum(result["samples"])
        assert total == len(a.asked) + len(b.asked) < 2 * 12 * 32
        stored = [list(read_records(tmp_path / "whole" / side, Generation)) for side in "ab"]
        assert [len(side) for side in stored] == result["samples"]
        tokens = [sum(g.completion_tokens for g in side) for side in stored]
        assert tokens == result["tokens"]
        # a problem that both always solve gets fewer samples than one that is open
        counts = {p["id"]: sum(p["samples"]) for p in result["problems"]}
        by_number = {int(re.findall(r"\d+", g.expected_answer or "")[0]): counts[g.problem_id] for g in stored[0]}
        assert by_number[11] < by_number[4]

        write_job(tmp_path, a, dying)
        with pytest.raises(OpenMathError):
            await decide(path, (), tmp_path / "killed")
        records = tmp_path / "killed" / "b" / "part-00000-of-00001.jsonl"
        records.write_bytes(records.read_bytes()[:-7])  # a line that a kill tore
        with (tmp_path / "killed" / "rounds.jsonl").open("ab") as file:
            file.write(b'{"round": 9')
        write_job(tmp_path, a, b)
        kept = len(list(read_records(tmp_path / "killed" / "a", Generation)))
        asked = len(a.asked)
        await decide(path, (), tmp_path / "killed")
        again = orjson.loads((tmp_path / "killed" / "result.json").read_bytes())
        assert again == result
        assert kept
        assert len(a.asked) - asked == result["samples"][0] - kept, "a sample that was kept is made again"

        with pytest.raises(UserError, match=r"other settings \(delta\)"):
            await decide(path, ("delta=0.01",), tmp_path / "whole")

        replayed = tmp_path / "replay.yaml"
        replayed.write_text("a: {generations: ./whole/a}\nb: {generations: ./whole/b}\ndelta: 0.05\norders: 3\n")
        await decide(replayed, (), tmp_path / "replayed")
        assert f"{total:,} samples, {sum(tokens):,} tokens" in capsys.readouterr().out
        (tmp_path / "self.yaml").write_text("a: {generations: ./whole/a}\nb: {label: c, generations: ./whole/a}\n")
        with pytest.raises(UserError, match="give solutions of two models"):
            await decide(tmp_path / "self.yaml", (), tmp_path / "self")


async def test_problems_that_cannot_be_asked_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refuses(Solver):
        def _solve(self, question: str) -> Reply:
            return Reply("flagged", status=400) if "0 + 3?" in question else super()._solve(question)

    async with Solver(0.9) as a, Refuses(0.9) as b:
        await decide(write_job(tmp_path, a, b, samples=4), (), tmp_path / "out")
        assert "left out: 1 problems that a model could not be asked" in capsys.readouterr().out
        result = orjson.loads((tmp_path / "out" / "result.json").read_bytes())
        assert len(result["problems"]) == 11
        assert len(result["apart"]) == 1
        with pytest.raises(UserError, match="a full run has no result"):
            await decide(tmp_path / "decide.yaml", ("estimand=full-run",), tmp_path / "full")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("generate.temperature=0", "samples of a problem are all the same at temperature 0"),
        ("b.label=old", "both models are called 'old'"),
        ("alpha=0.7", "alpha: 0.7 is out of range"),
        ("b.generations=./x", "give either `engine` or `generations`"),
        ("orderz=3", "orderz"),
        ("problems=./none.jsonl", "no such file or folder"),
    ],
)
def test_what_makes_no_comparison_is_refused(tmp_path: Path, override: str, says: str) -> None:
    path = write_job(tmp_path, ScriptedServer(str), ScriptedServer(str))
    with pytest.raises(UserError, match=re.escape(says)):
        load_decide_job(path, [override])

"""Whether a run of the recipe finds the stand-in's stated rates of errors by planted cases, at every stage:

    python -m tests.synthesis.control_recovery FOLDER [--cases 500] [--seed 1]

Writes a bank of cases for each stage, runs the stages of ``examples/tiny.yaml`` up to the judge with a control for each
unit, and prints what was measured beside what the rates lead to. Ends with 1 where an interval does not hold the
expected rate, or where anything planted stands outside of ``_controls``. Some minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson

from nemo_openmath.cli.main import run
from nemo_openmath.core.records import Problem, read_manifest, read_records
from nemo_openmath.core.stage import CONTROLS
from nemo_openmath.demo.controls import write_cases
from nemo_openmath.demo.rates import TeacherConfig
from nemo_openmath.evaluation.controls import METRIC, score_text
from nemo_openmath.synthesis.controls.bank import load_bank
from nemo_openmath.synthesis.controls.cases import Case
from nemo_openmath.synthesis.controls.plant import KEY
from nemo_openmath.synthesis.problems.benchmark_problems import BenchmarkProblems
from nemo_openmath.synthesis.problems.decontaminate import DecontaminateConfig
from tests.synthesis.expected_controls import Expected

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny.yaml"
STAGES = ("extracted", "classified", "converted", "answered", "problems", "cot_judged")
RECIPE = """\
extends: {example}
name: control-recovery
stages:
  threads:
    forum: {{single: {single}, several: 0, none: 20, proof: {proof}, beyond: 20, choice: 20, binary: 20, broken: 20}}
{planted}
  cot: {{samples: 1, limit: {judged}}}
  tir: {{samples: 1, limit: 10}}
"""


def recipe_text(bank: Path, cases: int) -> str:
    """The recipe, over a forum with a unit for each case."""
    words = f"controls: 1.0, control_cases: {bank}"
    planted = [f"  {name}: {{{words}}}" for name in STAGES[:-1]]
    planted.append(f"  cot_judged: {{{words}, everything: true}}")
    numbers = {"single": cases + 80, "proof": cases + 60, "judged": cases + 40}
    return RECIPE.format(example=EXAMPLE, planted="\n".join(planted), **numbers)


def left_outside(folder: Path, cases: list[Case], forum: bytes) -> Iterator[str]:
    """Yield each file of a stage that holds something planted, the folder of controls apart. ``forum``: the threads of
    the run. What stands there, too, is no sign of a control."""
    texts = [text for case in cases for text in (getattr(case, "forum_post", ""), getattr(case, "problem", "")) if text]
    shown = [text for text in (orjson.dumps(text)[1:-1] for text in texts) if text not in forum]
    for file in folder.rglob("*"):
        if file.is_file() and CONTROLS not in file.parts and file.suffix in (".jsonl", ".json"):
            content = file.read_bytes()
            if file.name != "manifest.json" and (KEY.encode() in content or any(text in content for text in shown)):
                yield str(file)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    bank, recipe = folder / "cases.jsonl", folder / "recipe.yaml"
    write_cases(bank, options.seed, options.cases)
    recipe.write_text(recipe_text(bank, options.cases))
    output = folder / "run"
    if code := run(["recipe", "run", str(recipe), "--output", str(output), "--until", "cot_judged"]):
        return code
    problems = [("b", problem) for problem in read_records(output / "benchmark", Problem)]
    expected = Expected(TeacherConfig(), DecontaminateConfig(), BenchmarkProblems(problems))
    wrong, forum = 0, b"".join(file.read_bytes() for file in (output / "threads").glob("part-*.jsonl"))
    print("| stage | class | measure | expected | measured (95%) | cases |\n|---|---|---|---|---|---|")
    for name in STAGES:
        manifest = read_manifest(output / name)
        assert manifest is not None
        kind, controls = manifest.stage, manifest.metrics[METRIC]
        cases = load_bank(kind, bank)
        for row in controls["scores"]:
            value = expected.value(cases, row["class"], row["measure"])
            holds = row["low"] <= value <= row["high"]
            wrong += not holds
            text = score_text(row) + ("" if holds else " NO")
            print(f"| `{kind}` | {row['class']} | {row['measure']} | {value:.1%} | {text} | {row['cases']} |")
        if controls["planted"] < options.cases:
            wrong += 1
            print(f"{name}: {controls['planted']} controls alone")
        for file in left_outside(output / name, cases, forum):
            wrong += 1
            print(f"planted: {file}")
    print(f"{wrong} wrong" if wrong else "every interval holds the expected rate, and nothing planted is left")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

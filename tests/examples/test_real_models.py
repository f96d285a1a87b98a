"""The table of what to change for real models: every row, as it is written, makes a recipe that may begin."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from nemo_openmath.cli.main import run
from nemo_openmath.core.errors import ExitCode, UserError
from nemo_openmath.recipe.file import load_recipe
from nemo_openmath.recipe.preflight import preflight

TOP = Path(__file__).parents[2]
EXAMPLES = TOP / "examples"


def rows() -> dict[str, list[str]]:
    """What is to be used -> the pieces of code of its row."""
    page = (TOP / "docs" / "howto" / "index.md").read_text()
    table = page.split("| to use | change in the recipe |\n", 1)[1].split("\n\n", 1)[0]
    cells = [re.split(r" \| ", line.strip("| "), maxsplit=1) for line in table.splitlines()[1:]]
    return {re.sub(r"\[(.*)\]\(.*\)", r"\1", name): re.findall(r"`([^`]+)`", text) for name, text in cells}


ROWS = rows()
TOP_LEVEL = ("a real teacher", "vLLM, SGLang, TensorRT-LLM")
STAGES = ("a real forum", "your benchmark")
DRAFTER = "a drafter, to decode faster"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one's own, with what the rows name."""
    for name in ("Qwen2.5-Math-1.5B", "path/of/its/tokenizer"):
        shutil.copytree(EXAMPLES / "base", tmp_path / name)
    (tmp_path / "threads").mkdir()
    (tmp_path / "threads" / "one.jsonl").write_text('{"forum_post": "1 + 1?", "forum_discussions": "2"}\n')
    (tmp_path / "benchmark.jsonl").write_text('{"problem": "1 + 1?", "expected_answer": "2"}\n')
    (tmp_path / "mine.txt").write_text("Solve this: {problem}\n")
    return tmp_path


def check(folder: Path, text: str) -> None:
    (folder / "mine.yaml").write_text(text)
    recipe = load_recipe(folder / "mine.yaml")
    preflight(recipe, list(recipe.stages), folder / "out")


def code(name: str, start: str) -> str:
    return next(piece for piece in ROWS[name] if piece.startswith(start))


def test_every_row_is_tried_here() -> None:
    others = {"a real student", "a GPU", "your own prompts", "a cluster", "stricter or fewer filters"}
    others |= {"several iterations", "better expected answers", "outputs of NeMo-Skills"}  # other tests have whole ones
    assert set(ROWS) == {*TOP_LEVEL, *STAGES, *others, DRAFTER}


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_a_setting_of_the_recipe(name: str, folder: Path) -> None:
    (piece,) = [piece for piece in ROWS[name] if piece.startswith(("teacher:", "student:"))]
    check(folder, f"extends: {EXAMPLES}/tiny.yaml\n{piece}\n")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage(name: str, folder: Path) -> None:
    check(folder, f"extends: {EXAMPLES}/tiny.yaml\nstages:\n  {ROWS[name][0]}\n")
    shutil.rmtree(folder / "threads")
    (folder / "benchmark.jsonl").unlink()
    with pytest.raises(UserError, match="no such file or folder"):
        check(folder, f"extends: {EXAMPLES}/tiny.yaml\nstages:\n  {ROWS[name][0]}\n")


def test_a_drafter(folder: Path) -> None:
    (stage,) = ROWS[DRAFTER]
    text = f"extends: {EXAMPLES}/tiny.yaml\nstages:\n  {stage}\n"
    check(folder, text)
    with pytest.raises(UserError, match="no_such"):
        check(folder, text.replace("model: ", "model: no_such"))


def test_a_real_student(folder: Path) -> None:
    model = code("a real student", "model:").removeprefix("model: ")
    head, stages = (EXAMPLES / "tiny.yaml").read_text().split("\nstages:", 1)
    assert stages.count("./base") >= 4
    shutil.copytree(EXAMPLES / "base", folder / "base")  # of the stand-in's tokenizer
    check(folder, f"{head}\nstages:{stages.replace('./base', model)}")
    assert "qwen2.5-math-1.5b" in code("a real student", "examples/")


def test_filters(folder: Path) -> None:
    rules = code("stricter or fewer filters", "rules:").replace(", ...]", "]")
    check(folder, f"extends: {EXAMPLES}/tiny.yaml\nstages:\n  cot_kept: {{{rules}}}\n")


def test_a_gpu(folder: Path) -> None:
    text = f"extends: {EXAMPLES}/tiny.yaml\n{code('a GPU', 'student:')}\nstages:\n"
    text += f"  train1: {{{code('a GPU', 'training:')}}}\n"
    if torch.cuda.is_available():
        check(folder, text)
        return
    with pytest.raises(UserError, match=r"student\.device: 'cuda'") as error:
        check(folder, text)
    assert "things are wrong" not in str(error.value), "nothing but the GPU is missing"


def test_prompts_of_ones_own(folder: Path) -> None:
    prompt = code("your own prompts", "prompt:")
    for stage in ("cot", "base_cot"):
        check(folder, f"extends: {EXAMPLES}/tiny.yaml\nstages:\n  {stage}: {{{prompt}}}\n")
    (folder / "mine.txt").write_text("no place\n")
    with pytest.raises(UserError, match=r"the prompt has no place for \{problem\}"):
        check(folder, f"extends: {EXAMPLES}/tiny.yaml\nstages:\n  cot: {{{prompt}}}\n")


def test_a_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(TOP)
    words = code("a cluster", "openmath launch").split()[1:]
    given = {"RECIPE": "examples/tiny.yaml", "DIR": str(folder / "out")}
    assert run([given.get(word, word) for word in words]) is ExitCode.OK
    assert (folder / "out" / "sbatch" / "submit.sh").is_file()

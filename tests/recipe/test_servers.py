"""Models that stages ask: several at a time, and where a launcher says that they are served."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_openmath.core.engine import Engine, Request, Sampling
from nemo_openmath.core.errors import UserError
from nemo_openmath.core.written_tokens import CountedEngine
from nemo_openmath.inference.http.client import HTTPEngine
from nemo_openmath.recipe.file import load_recipe
from nemo_openmath.recipe.runner import Run
from nemo_openmath.recipe.server_addresses import read_servers
from nemo_openmath.recipe.services import RecipeServices
from tests.inference.faulty import FaultyServer

BASE = Path(__file__).parents[2] / "examples" / "base"
RECIPE = """\
name: two
student: {max_context: 64, threads: 1}
teacher: {url: "http://127.0.0.1:9", model: m, tokenizer: ./a}
stages:
  benchmark: {run: demo.benchmark, problems: 2}
  graded: {run: rollout.generate, from: benchmark, engine: ./a}
"""


def services(folder: Path, servers: str = "{}") -> RecipeServices:
    (folder / "r.yaml").write_text(RECIPE)
    for name in "ab":
        (folder / name).symlink_to(BASE)
    (folder / "servers.json").write_text(servers)
    return RecipeServices(load_recipe(folder / "r.yaml"), folder / "out", read_servers(folder / "servers.json"))


async def answers(engine: Engine) -> int:
    completion = await engine.complete(Request((1, 2), Sampling(max_tokens=2, temperature=0.0)))
    return len(completion.token_ids)


async def test_a_stage_generates_with_two_models(tmp_path: Path) -> None:
    lent = services(tmp_path)
    first, _ = await lent.engine("./a")
    second, _ = await lent.engine("./b")
    assert await answers(first) == await answers(second) == 2, "the first is still open"
    assert (await lent.engine("./a"))[0] is first
    await lent.close()


async def test_a_launcher_says_where_models_are_served(tmp_path: Path) -> None:
    """Whatever the recipe says of teacher and student; no fingerprint knows of it."""
    server = await FaultyServer(0.0).start()
    served = {"addresses": str(tmp_path / "urls"), "name": "m", "wait_s": 60}
    lent = services(tmp_path, json.dumps({"teacher": served, "./a": served}))
    assert (tmp_path / "urls").is_dir(), "empty until a server is healthy"
    (tmp_path / "urls/0.0.url").write_text(f"{server.url}\n")
    for name in ("teacher", "./a"):
        counted, _ = await lent.engine(name)
        assert isinstance(counted, CountedEngine)
        engine = counted.engine
        assert isinstance(engine, HTTPEngine)
        assert [endpoint.url for endpoint in engine.servers] == [server.url]
    await lent.close()
    await server.die()
    recipe = load_recipe(tmp_path / "r.yaml")
    assert [s.name for s in Run(recipe, tmp_path / "out").status()] == ["benchmark", "graded"]


@pytest.mark.parametrize("text", ["[]", "{", '{"teacher": {}}', '{"teacher": 1}'])
def test_a_file_that_says_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "servers.json").write_text(text)
    with pytest.raises(UserError, match=r"servers\.json: no file of servers; write"):
        read_servers(tmp_path / "servers.json")


def test_a_folder_of_a_job_is_known_in_jobs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"addresses": f"{tmp_path}/a.${{SLURM_JOB_ID}}/m", "name": "m", "wait_s": 1}
    (tmp_path / "servers.json").write_text(json.dumps({"m": entry}))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="SLURM_JOB_ID is not set"):
        read_servers(tmp_path / "servers.json")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert read_servers(tmp_path / "servers.json")["m"].folder == tmp_path / "a.7/m"

"""The graph of a run: every stage, model and file once, arrows with numbers, iterations in order."""

import json
import xml.dom.minidom
from pathlib import Path

import pytest

from nemo_openmath.core.records import Mode, SftRow
from nemo_openmath.launch.view_graph import Node, graph_svg
from nemo_openmath.recipe.economics.measure import measure
from nemo_openmath.recipe.file import load_recipe
from nemo_openmath.recipe.lineage.graph import LineageGraph, lineage_graph
from nemo_openmath.recipe.lineage.run_stages import RunStages
from nemo_openmath.recipe.lineage.trace import trace
from nemo_openmath.recipe.runner import Run
from tests.conftest import SmokeRun
from tests.support.runs import solution, write_stage

ROOT = Path(__file__).parents[2]


def graph_of(recipe: str, output: Path) -> LineageGraph:
    run = Run(load_recipe(ROOT / f"examples/{recipe}.yaml"), output)
    return lineage_graph(run, RunStages(output, run.recipe))


@pytest.mark.parametrize("recipe", ["tiny", "tiny-loop", "sft-curriculum"])
def test_arrows_lead_down_from_lane_to_lane(recipe: str, tmp_path: Path) -> None:
    graph = graph_of(recipe, tmp_path)
    data = graph.to_json()
    place = {node.name: at for at, node in enumerate(graph.nodes)}
    assert len(place) == len(graph.nodes), "each once"
    lanes = [data["lanes"].index(node.lane) for node in graph.nodes]
    assert lanes == sorted(lanes)
    assert all(place[edge.source] < place[edge.reader] for edge in graph.edges)
    picture = xml.dom.minidom.parseString(graph.picture())
    assert len(picture.getElementsByTagName("rect")) == len(graph.nodes)


def test_the_iterations_of_a_loop_are_lanes(tmp_path: Path) -> None:
    data = graph_of("tiny-loop", tmp_path).to_json()
    iterations = [f"iteration {i}" for i in range(1, 5)]
    assert data["lanes"] == ["before the loop", *iterations, "after the loop"]
    lane = {node["name"]: node["lane"] for node in data["nodes"]}
    assert (lane["tir-2"], lane["student1"], lane["competition"]) == (
        "iteration 2",
        "before the loop",
        "after the loop",
    )
    types = {node["name"]: node["type"] for node in data["nodes"]}
    assert (types["teacher"], types["examples/base"], types["student-1"]) == ("teacher", "file", "model")
    assert {"from": "student-1", "to": "tir-2", "port": "engine", "records": None} in data["edges"]


def test_inputs_in_the_folder_of_another_run_are_followed(tmp_path: Path) -> None:
    made = [solution("problem-1", k) for k in range(3)]
    other, run = tmp_path / "other", tmp_path / "run"
    write_stage(other, "tir", "rollout.generate", made)
    write_stage(other, "tir_kept", "solutions.filter", made[:2], reads=["tir"], drops={made[2].id: "wrong answer"})
    row = SftRow.make(made[0], problem_id="problem-1", mode=Mode.TIR, transcript=made[0].transcript)
    write_stage(run, "rows", "solutions.rows", [row], reads=["../other/tir_kept"])
    write_stage(run, "alone", "rollout.generate", made)
    stages = RunStages(run)
    assert [stage.name for stage in stages] == ["alone", "other/tir", "other/tir_kept", "rows"]
    (first, generation, _) = trace(stages, row.id).records
    assert [version.stage.name for version in generation.versions] == ["alone", "other/tir", "other/tir_kept"]
    assert first.parents[0] == generation.id
    assert not measure(stages).models, "what another run kept is not counted as of this one"


def test_lanes_stand_below_each_other() -> None:
    nodes = [Node("a", (), lane="one"), Node("b", ("a",), lane="one"), Node("c", ("a",), lane="two & more")]
    picture = xml.dom.minidom.parseString(graph_svg(nodes, "t"))
    boxes = [float(rect.getAttribute("y")) for rect in picture.getElementsByTagName("rect")]
    assert boxes[0] < boxes[1] < boxes[2]
    assert len([text for text in picture.getElementsByTagName("text") if text.getAttribute("class") == "lane"]) == 2


@pytest.mark.slow
def test_the_numbers_are_those_of_the_manifests(smoke_run: SmokeRun) -> None:
    data = json.loads((smoke_run.output / "lineage.json").read_text())
    assert data["lanes"] == ["before the first training", "after training 1", "after training 2"]
    nodes = {node["name"]: node for node in data["nodes"]}
    manifests = {p.parent.name: json.loads(p.read_text()) for p in smoke_run.output.glob("*/manifest.json")}
    assert manifests.keys() == {name for name, node in nodes.items() if "kind" in node}
    for name, manifest in manifests.items():
        assert nodes[name]["digest"] == manifest["digest"]
        assert {edge["from"] for edge in data["edges"] if edge["to"] == name} >= manifest[
            "inputs"
        ].keys() & nodes.keys()
    for edge in data["edges"]:
        if (manifest := manifests.get(edge["from"])) and manifest["counts"]["units"]:
            assert edge["records"] == manifest["counts"]["records"]
    assert 'id="lineage"' in (smoke_run.output / "report.html").read_text()

"""The loss certificate: each fault put into our trainer is named, and no other; our own layouts pass."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_openmath.cli import main as command
from nemo_openmath.core.errors import ExitCode
from nemo_openmath.data.packs.write import write_packs
from nemo_openmath.data.tokens.token_file import ShardWriter, write_manifest
from nemo_openmath.training.certificate.diagnose import Diagnosis, diagnose
from nemo_openmath.training.certificate.files import Certificate, digest
from nemo_openmath.training.certificate.losses import ReportedLoss
from nemo_openmath.training.certificate.report import verdict
from tests.support import models
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow

MODEL = models.TIED.with_changes(num_hidden_layers=12, vocab_size=108)
LENGTHS = (37, 23, 5, 41, 90, 38, 3, 17, 7, 30, 65)

# (layout, ranks, fault): as many as there are; right where it is None
PP4 = {"pp": 4}
CASES: list[tuple[dict[str, Any], int, str | None]] = [
    ({"pp": 3}, 3, None),
    ({"pp": 3}, 3, "middle_stages_as_one_sequence"),
    (PP4, 4, None),
    ({"pp": 2, "vpp": 3}, 4, None),
    ({"tp": 2, "sequence_parallel": True, "cp": 2}, 4, None),
    ({"cp": 2}, 4, None),
    *(
        (PP4, 4, name)
        for name in (
            "attention_across_samples",
            "pack_as_one_sequence",
            "middle_stages_as_one_sequence",
            "positions_not_reset",
            "rotary_base",
            "mask_late",
            "mask_early",
            "prompt_trained",
            "labels_not_shifted",
            "labels_shifted_twice",
            "boundary_targets",
            "end_not_trained",
            "first_target_masked",
            "between_trained",
            "one_run_trained",
            "samples_cut",
            "biases_lost",
            "micro_batch_means",
            "sample_means",
            "loss_summed",
            "divided_by_all_tokens",
            "scaled",
            "weights_not_loaded",
        )
    ),
    ({"tp": 2, "cp": 2}, 4, "context_order over the pack"),  # with one replica, whose packs are those of the plan
    ({"tp": 2, "cp": 2}, 4, "context_rank_means"),
    *(
        ({"cp": 2}, 4, name)
        for name in (
            "context_order",
            "rank_positions",
            "padding_trained",
            "tokens_dropped",
            "shifted_on_ranks",
        )
    ),
]


def _write_packs(folder: Path) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    with ShardWriter(folder / "00000.tokens", tokenizer="t", vocab_size=MODEL.vocab_size, source="s") as writer:
        for number, length in enumerate(LENGTHS):
            mask = np.arange(length) >= length // 3
            if number == 4:
                mask[40:50] = False  # what a tool wrote
            writer.add(f"sample-{number}", "cot", random.integers(2, MODEL.vocab_size, length), mask)
        writer.finish({})
    write_manifest(folder, ["00000.tokens"])
    write_packs(folder, capacity=128, pad_multiple=4)


def _name(layout: dict[str, Any], fault: str | None) -> str:
    return "-".join(f"{key}{int(value)}" for key, value in layout.items()) + f" {fault or 'right'}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the certificate (cert.json), of a job's (out/certificate.json) and of each case's loss."""
    root = tmp_path_factory.mktemp("certificate")
    models.make(root / "hf", MODEL)
    (root / "hf/tokenizer.json").unlink()
    _write_packs(root / "packs")
    data = f"data: {{folder: packs, steps: 2, batch_samples: {len(LENGTHS)}}}"
    job = root / "job.yaml"
    job.write_text(f"{{model: hf, {data}, output: out, training: {{certify: true}}}}")
    making = subprocess.Popen([sys.executable, "-m", "tests.training.certifying", str(root)])
    for world in (3, 4):
        cases = [
            {
                "job": str(job),
                "overrides": [f"parallel.{key}={value}" for key, value in layout.items()],
                "fault": fault,
                "output": str(root / _name(layout, fault)),
            }
            for layout, ranks, fault in CASES
            if ranks == world
        ]
        if world == 4:
            assert making.wait() == 0
            for fault in (None, "pack_as_one_sequence"):
                out = root / f"out {fault}"
                out.mkdir()
                shutil.copy(root / "out/certificate.json", out)
                overrides = ["parallel.pp=4", f"output={out}"]
                case = {"job": str(job), "overrides": overrides, "fault": fault, "train": True}
                cases.append({**case, "output": str(root / f"trained {fault}")})
        run_ranks("tests.training.faulty_ranks", world, cases, root)
    return root


@pytest.fixture(scope="module")
def certificate(root: Path) -> Certificate:
    return Certificate.read(root / "cert.json")


def _diagnose(certificate: Certificate, loss: float) -> Diagnosis:
    return diagnose(certificate, [ReportedLoss(2, 1, loss)], certificate.tolerances["fp32"])


@pytest.mark.parametrize(("layout", "fault"), [case[::2] for case in CASES], ids=lambda value: str(value))
def test_a_fault_is_named_and_no_other(
    root: Path, certificate: Certificate, layout: dict[str, Any], fault: str | None
) -> None:
    diagnosis = _diagnose(certificate, float((root / _name(layout, fault)).read_text()))
    if fault in (None, "positions_not_reset"):  # rotary angles see differences alone: the loss is right
        assert diagnosis.status == "certified", diagnosis
        assert diagnosis.right_gap < 2e-6
    else:
        assert diagnosis.names == [fault.split()[0]], diagnosis
        assert diagnosis.status == "fault"
    if fault == "middle_stages_as_one_sequence":
        assert diagnosis.explanations[0].variant.startswith(f"{layout['pp']} stages")


def test_the_reference_is_transformers(root: Path, certificate: Certificate) -> None:
    """Each sample alone through transformers' model, fp32: the right loss within 1e-6, labels of other tokens too."""
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(root / "hf", dtype=torch.float32, attn_implementation="eager").eval()
    sums, own, count = 0.0, 0.0, 0
    expected = {}
    for line in (root / "data.jsonl").read_text().splitlines():
        pack = json.loads(line)
        ends = [*pack["seq_start_id"][1:], len(pack["input_ids"])]
        for name, start, end in zip(pack["sample_ids"], pack["seq_start_id"], ends, strict=True):
            tokens, labels = (torch.tensor(pack[key][start:end]) for key in ("input_ids", "labels"))
            assert pack["position_ids"][start:end] == list(range(end - start))
            with torch.no_grad():
                log_p = net(input_ids=tokens.unsqueeze(0)).logits[0].double().log_softmax(-1)
            target = labels[1:] != -100
            losses = -log_p[:-1].gather(1, tokens[1:].unsqueeze(1)).squeeze(1)[target]
            expected[name] = float(losses.mean()) if len(losses) else None
            sums, count = sums + float(losses.sum()), count + len(losses)
            own -= float(log_p[:-1].gather(1, tokens[:-1].unsqueeze(1)).squeeze(1)[target].sum())
    [step] = certificate.steps
    assert step.target_tokens == count
    assert step.loss == pytest.approx(sums / count, rel=1e-6)
    assert {sample.id: sample.loss for sample in step.samples} == pytest.approx(expected, rel=2e-6)
    not_shifted = [fault.loss for fault in step.predicted if fault.fault == "labels_not_shifted"]
    assert not_shifted[0] == pytest.approx(own / count, rel=1e-6)


def test_a_training_is_certified_in_its_first_step(root: Path) -> None:
    """A right one goes on; a wrong one stops before its weights change, and leaves no checkpoint."""
    assert (root / "trained None").read_text() == "trained"
    said = (root / "trained pack_as_one_sequence").read_text()
    assert said.startswith("NotCertified: step 1: loss ")
    assert "pack_as_one_sequence: all layers take a pack for one sample" in said
    assert said.endswith("weights unchanged")
    metrics = (root / "out None/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2]
    assert (root / "out pack_as_one_sequence/metrics.jsonl").read_text() == ""
    assert not list((root / "out pack_as_one_sequence/checkpoints").glob("step-*"))


def test_what_diagnose_says(
    root: Path, certificate: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit codes and lines; rows of micro-batches and samples; numbers with few digits; wrong files, by their rows."""
    [step] = certificate.steps
    leak = next(fault for fault in step.predicted if fault.fault == "pack_as_one_sequence")

    def said(text: str, *options: str) -> tuple[ExitCode, str]:
        (tmp_path / "losses.csv").write_text(text)
        code = command.run(
            ["diagnose", str(tmp_path / "losses.csv"), "--certificate", str(root / "cert.json"), *options]
        )
        return code, "".join(capsys.readouterr())

    code, text = said(f"step,loss\n1,{step.loss:.7f}\n")
    assert (code, text.split(":")[0]) == (ExitCode.OK, "certified")
    code, text = said(f"step,loss\n1,{leak.loss:.7f}\n")
    assert (code, text.split(":")[0]) == (ExitCode.FAULT, "pack_as_one_sequence")
    assert "look at: packed_seq_params" in text
    near = f"step,loss\n1,{1.001 * step.loss:.7f}\n"  # right in bf16, and nobody said that it is not bf16
    code, text = said(near)
    assert (code, "cannot tell apart right (in bf16) and" in text) == (ExitCode.UNDECIDED, True)
    assert said(near, "--precision", "fp32")[0] in (ExitCode.UNKNOWN, ExitCode.FAULT)
    whole = (root / "cert.json").read_text()
    for name, value in {
        "loss": "2.5",
        "samples": [],
        "predicted": None,
        "tolerances": {"fp32": "x"},
        "faults": [],
    }.items():
        content = json.loads(whole)
        (content if name in content else content["steps"][0])[name] = value
        del content["digest"]
        content["digest"] = digest(content)  # what a program wrote wrongly
        assert "damaged.json: is not whole" in _refused(content, tmp_path, capsys)
    code, text = said(f"step,loss\n1,{1.5 * step.loss:.7f}\n")
    assert (code, text.split(":")[0]) == (ExitCode.UNKNOWN, "unknown")
    code, text = said(f"step,loss\n1,{step.loss:.1f}\n")  # known to 0.05: near to many
    assert (code, text.split(",")[0]) == (ExitCode.UNDECIDED, "cannot tell apart right")
    samples = [
        f"1,{loss:.7f},,{sample.id}"
        for sample, loss in zip(step.samples, leak.samples, strict=True)
        if loss is not None
    ]
    packs = [f"1,{loss:.7f},{number}," for number, loss in enumerate(leak.micro_batches)]
    code, text = said("\n".join(["step,loss,micro_batch,sample", *samples, *packs]), "--precision", "bf16")
    assert (code, text.split(":")[0]) == (ExitCode.FAULT, "pack_as_one_sequence")
    for rows, problem in {
        "step,loss\n1,2.5\n1,2.5\n": "losses.csv:3: the same as row 2",
        "step,loss\n2,2.5\n": "losses.csv: no row is of step 1 to 1, which the certificate has",
        "step,loss\n²,2.5\n": "losses.csv:2: step ²: the certificate has steps 1 to 1",
        "step,loss\n1,-2.5\n": "losses.csv:2: loss -2.5 is below 0",
        "step,loss\n1,2_0.5\n": "losses.csv:2: loss '2_0.5' is no number",
        "step,loss\n1,much\n": "losses.csv:2: loss 'much' is no number",
        "step,loss\n1,nan\n": "losses.csv:2: loss nan is not finite",
        "step,loss,sample\n1,2.5,nobody\n": "losses.csv:2: sample 'nobody' is not in step 1",
        "step,loss,micro_batch\n1,2.5,3\n": "losses.csv:2: micro-batch 3: step 1 has 0 to 2",
        "step,loss,sample\n1,2.5\n": "losses.csv:2: 2 cells, the heading has 3",
        "1,2.5\n": "losses.csv:1: the heading is 1,2.5",
        "step,loss,Loss\n1,2.5,2.5\n": "losses.csv:1: the heading is step,loss,loss",
        "step,epoch,train/loss\n1,0,2.5\n": "losses.csv:1: the heading is step,epoch,train/loss; name one column step",
        "step,loss,epoch\n0,2.6,0\n1,2.5,0\n": "losses.csv:2: step 0: the certificate has steps 1 to 1",
        "step,loss\n": "losses.csv: no row holds a loss",
    }.items():
        code, text = said(rows)
        assert (code, problem in text) == (ExitCode.USER_ERROR, True), text


def _refused(content: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    (folder / "damaged.json").write_text(json.dumps(content))
    (folder / "any.csv").write_text("step,loss\n1,2.5\n")
    arguments = ["diagnose", str(folder / "any.csv"), "--certificate", str(folder / "damaged.json")]
    assert command.run(arguments) is ExitCode.USER_ERROR
    return capsys.readouterr().err


def test_a_certificate_that_was_changed_is_refused(
    root: Path, certificate: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A right loss edited wherever it stands; one of the version without a digest; white space is free."""
    text = (root / "cert.json").read_text()
    content = json.loads(text)
    edited = json.loads(text)
    [step] = edited["steps"]
    step["loss"] *= 2
    for sample in step["samples"]:
        sample["loss"] = sample["loss"] and 2 * sample["loss"]
    assert "is not whole (it was changed after it was made" in _refused(edited, tmp_path, capsys)
    old = {name: value for name, value in content.items() if name != "digest"} | {"version": 1}
    assert "is of version 1, this program reads 2; make it again with openmath certify" in _refused(
        old, tmp_path, capsys
    )
    (tmp_path / "compact.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert Certificate.read(tmp_path / "compact.json") == certificate


def test_a_loggers_file_is_read_and_what_was_not_is_said(
    root: Path, certificate: Certificate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = certificate.steps[0].loss
    file = tmp_path / "log.csv"
    file.write_text(f"Loss,grad_norm,Step,epoch,eval_loss\n{right:.7f},1.5,1,0.1,\n,,1,0.1,2.0\n2.0,1.4,2,0.2,\n")
    assert command.run(["diagnose", str(file), "--certificate", str(root / "cert.json")]) is ExitCode.OK
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == (
        "read: columns loss, step, not grad_norm, epoch, eval_loss; not 1 row of steps behind the certified ones; "
        "not 1 row without a loss"
    )
    assert second.startswith("certified: ")


def test_micro_batches_that_are_divided_wrongly_are_named(root: Path, certificate: Certificate) -> None:
    """Rows of single micro-batches alone, from the samples' right losses and the packs' lengths by hand."""
    [step] = certificate.steps
    packs = [json.loads(line) for line in (root / "data.jsonl").read_text().splitlines()]
    samples = [[s for s in step.samples if s.micro_batch == number] for number in range(len(packs))]
    sums = [sum(s.target_tokens * (s.loss or 0.0) for s in part) for part in samples]
    tokens = [len(pack["input_ids"]) for pack in packs]
    longest = [max(pack["seq_lengths"]) * len(pack["seq_lengths"]) for pack in packs]
    for name, rows in {
        "loss_summed": sums,
        "divided_by_all_tokens": [total / number for total, number in zip(sums, tokens, strict=True)],
        "divided_by_all_tokens longest": [total / number for total, number in zip(sums, longest, strict=True)],
        "sample_means": [sum(s.loss for s in part if s.loss) / len([s for s in part if s.loss]) for part in samples],
    }.items():
        reported = [ReportedLoss(2, 1, loss, micro_batch=number) for number, loss in enumerate(rows)]
        diagnosis = diagnose(certificate, reported, certificate.tolerances["fp32"])
        assert (diagnosis.status, diagnosis.names) == ("fault", [name.split()[0]]), diagnosis
        batch = {"loss_summed": sum(sums), "sample_means": None}.get(name, sum(rows) / len(rows))
        if batch is not None:
            reported.append(ReportedLoss(2, 1, batch))
            assert diagnose(certificate, reported, certificate.tolerances["fp32"]).names == [name.split()[0]]


def test_faults_that_are_one_on_these_packs_are_named_together(certificate: Certificate) -> None:
    """With one run of targets in each sample, a mask that is late and a first target that is masked are the same."""
    [step] = certificate.steps
    late = next(p for p in step.predicted if p.fault == "mask_late" and p.variant.startswith("within"))
    others = [p for p in step.predicted if p.fault != "first_target_masked"]
    twins = replace(step, predicted=[*others, replace(late, fault="first_target_masked", variant="of each run")])
    diagnosis = _diagnose(replace(certificate, steps=[twins]), late.loss)
    assert (diagnosis.status, diagnosis.names) == ("fault", ["mask_late", "first_target_masked"])
    assert "mask_late (within each sample: the first target of each run is lost) or first_target" in verdict(
        diagnosis, certificate
    )


def test_what_acts_on_some_data_alone_keeps_nothing_from_being_certified(certificate: Certificate) -> None:
    """Samples of one run of targets cannot show what a trainer does between two; of attention all packs must show."""
    [step] = certificate.steps
    for name, status in {"between_trained": "certified", "attention_across_samples": "undecided"}.items():
        seen = replace(step, predicted=[p for p in step.predicted if p.fault != name])
        without = replace(certificate, steps=[seen], unexercised=[[name, ""]])
        assert _diagnose(without, step.loss).status == status


def test_the_page_names_every_fault(certificate: Certificate) -> None:
    page = (Path(__file__).parents[2] / "docs/howto/certificate.md").read_text()
    for name, fault in certificate.faults.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        for source in fault["sources"]:
            for number in re.findall(r"#(\d+)", source):
                assert re.search(rf"\b{number}\b", row), (name, number)

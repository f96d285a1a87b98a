"""The drafter: its loss against loops written by hand, its decoding against plain greedy decoding, its stage."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM

from nemo_openmath.chat import ChatTokenizer
from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.models.drafters import DrafterShape, ReDrafter, embedding_digest
from nemo_openmath.models.eagle3 import Eagle3
from nemo_openmath.speculative.batches import batches, epoch_order
from nemo_openmath.speculative.decode import Decoded, Tree, speculate
from nemo_openmath.speculative.frozen import Batch, fast_products, load_base
from nemo_openmath.speculative.redrafter import RedrafterTraining
from nemo_openmath.speculative.settings import DrafterSettings
from nemo_openmath.speculative.stage import DrafterConfig, TrainDrafter
from nemo_openmath.speculative.texts import Text
from nemo_openmath.speculative.train import measure, train
from tests.speculative.served import HIDDEN, VOCAB, generations, greedy, qwen2
from tests.support.fake_cuda import GIB, fake_cuda
from tests.support.live_bytes import LiveBytes
from tests.support.services import stage_context


@pytest.fixture(scope="module")
def trained(base: Any, texts: list[Text]) -> ReDrafter:
    settings = DrafterSettings(epochs=12, lr=5e-3, batch_tokens=800)
    return train(RedrafterTraining(base), texts[:240], settings, lambda *_: None).drafter


def drafter(seed: int = 0) -> ReDrafter:
    torch.manual_seed(seed)
    return ReDrafter(DrafterShape(HIDDEN, VOCAB)).eval()


def add_gradients(base: Any, model: ReDrafter, rows: list[Text]) -> float:
    kind, batch = RedrafterTraining(base), Batch.of(rows, base.device)
    return kind.add_gradients(model, batch, kind.states(batch.ids)).value


def replay(base: Any, model: ReDrafter, text: Text) -> tuple[int, int]:
    acceptance = measure(RedrafterTraining(base), model, [text])
    return acceptance.steps, sum(acceptance.accepted)


def test_loss_and_gradients_are_those_of_loops_written_by_hand(base: Any) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for length in (9, 3, 6):  # padding, a row with a single guess, a tool's span in the middle
        own = np.arange(length) >= 2
        own[4:6] = False
        rows.append(Text(rng.integers(0, VOCAB, length).astype(np.int32), own))
    model = drafter()
    weights = {name: tensor.detach().double().requires_grad_() for name, tensor in model.named_parameters()}
    expected = torch.zeros((), dtype=torch.float64)
    for ahead in range(3):
        terms = []
        for row in rows:
            hidden = base.model(torch.from_numpy(row.ids[None]).long())[0][0].double()
            for target in range(ahead + 2, len(row.ids)):
                if not row.loss_mask[target]:
                    continue
                seen = target - ahead - 2  # its hidden state decides token seen + 1, which is read first
                state = torch.zeros(HIDDEN, dtype=torch.float64)
                for read in range(seen + 1, target):
                    e = base.model.embed_tokens.weight[int(row.ids[read])].double()
                    state = silu(weights["rnn_w.weight"] @ e + weights["rnn_u.weight"] @ state + weights["rnn_u.bias"])
                x = torch.cat([hidden[seen], state])
                for layer in range(2):
                    linear = f"lm_head.{layer}.linear"
                    x = x + silu(weights[f"{linear}.weight"] @ x + weights[f"{linear}.bias"])
                logits = weights["lm_head.2.weight"] @ x
                said = (base.lm_head.weight.double() @ hidden[target - 1]).softmax(0)
                terms.append(logits.exp().sum().log() - said @ logits)
        expected = expected + torch.stack(terms).mean()
    expected.backward()
    assert add_gradients(base, model, rows) == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), weights[name].grad, rtol=1e-4, atol=1e-6)


def test_it_begins_as_the_best_linear_drafter(base: Any, texts: list[Text]) -> None:
    """Least squares by numpy, from features that are made one by one; embeddings of any size are read alike."""
    kind, rows = RedrafterTraining(base), texts[:40]
    batches_read = [(batch := Batch.of(rows[i : i + 8], base.device), kind.states(batch.ids)) for i in range(0, 40, 8)]
    torch.manual_seed(0)
    model = kind.new(rows, DrafterSettings(), batches_read)
    table, before, after, read = base.model.embed_tokens.weight, [], [], []
    for text in rows:
        hidden = base.model(torch.from_numpy(text.ids[None]).long())[0][0]
        for at in np.flatnonzero(text.loss_mask):
            state = model.advance(torch.zeros(HIDDEN), table[int(text.ids[at])])
            before.append(np.concatenate([hidden[at - 1].numpy(), state.detach().numpy(), [1.0]]))
            after.append(hidden[at].numpy())
            read.append(model.rnn_w(table[int(text.ids[at])]).detach())
    x, y = np.array(before, np.float64), np.array(after, np.float64)
    ridge = np.sqrt(1e-4 * (x**2).sum(0).mean()) * np.eye(x.shape[1])
    found = np.linalg.lstsq(np.concatenate([x, ridge]), np.concatenate([y, 0 * ridge[:, :HIDDEN]]), rcond=None)[0][:-1]
    expected = base.lm_head.weight.double() @ torch.from_numpy(found).t()
    torch.testing.assert_close(model.output_weight.double(), expected, rtol=1e-3, atol=1e-3)
    assert torch.stack(read).std() == pytest.approx(1, rel=0.2)
    steps, accepted = np.sum([replay(base, model, text) for text in texts[240:]], axis=0)
    assert accepted / steps > 0.25, "before it is trained; random ones: 0.1"


def test_a_step_takes_the_memory_of_a_part_of_its_logits() -> None:
    """The logits of three guesses with their gradients, each at once, took 30 MiB here."""
    vocab, base = 8000, qwen2(8000)
    rows = [Text(np.arange(64, dtype=np.int32) + 64 * i, np.ones(64, bool)) for i in range(4)]
    torch.manual_seed(0)
    model = ReDrafter(DrafterShape(HIDDEN, vocab))
    with LiveBytes() as memory:
        add_gradients(base, model, rows)
    assert memory.peak < 16 << 20


def test_a_drafter_is_trained_on_the_gpu_that_has_room(base: Any, texts: list[Text], tmp_path: Path) -> None:
    base.save_pretrained(tmp_path)
    settings, precisions = DrafterSettings(batch_tokens=400), set()

    def note(*_: object) -> None:
        precisions.add(torch.get_float32_matmul_precision())

    with fake_cuda(memory_bytes=GIB):
        assert load_base(tmp_path, settings).device.type != "cuda"
    with fake_cuda() as cuda:
        placed = load_base(tmp_path, settings)
        assert placed.device.type == "cuda"
        with fast_products(placed.device):
            note()
        drafter = train(RedrafterTraining(placed), texts[:8], settings, note).drafter
        assert all(parameter.is_cuda for parameter in drafter.parameters())
        assert cuda.devices_in_use == {0}
    assert precisions == {"high", "highest"}
    here = train(RedrafterTraining(base), texts[:8], settings, note).drafter
    for theirs, ours in zip(drafter.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.parametrize("beams", [1, 4])
def test_the_output_is_plain_greedy_decoding(base: Any, trained: ReDrafter, beams: int) -> None:
    some_accepted = some_rejected = 0
    for seed in range(6):
        prompt = torch.randint(VOCAB, (3 + seed,), generator=torch.Generator().manual_seed(seed)).tolist()
        expected = greedy(base, prompt, 30)
        for model in (drafter(), trained):
            out = speculate(base, model, prompt, max_new_tokens=30, beams=beams)
            assert out.ids == expected
            # the prompt's pass gives the first token, a step its drafts and, but for the last one, a token more
            assert out.steps + out.accepted - (len(out.ids) - 1) in (0, 1)
            some_accepted += out.accepted
            some_rejected += out.steps * 3 - out.accepted
        stop = expected[12]  # it may come earlier; with a drafter it may come amid a step
        out = speculate(base, trained, prompt, max_new_tokens=30, stop={stop}, beams=beams)
        assert out.ids == expected[: expected.index(stop) + 1]
    assert some_accepted > 50
    assert some_rejected > 50


def test_a_trained_drafter_is_accepted(base: Any, texts: list[Text], trained: ReDrafter) -> None:
    """A drafter trained on shifted labels would draft the wrong position, and be accepted by chance alone."""
    mean: dict[str, float] = {}
    for name, model in (("random", drafter()), ("trained", trained)):
        steps, accepted = np.sum([replay(base, model, text) for text in texts[240:]], axis=0)
        mean[name] = accepted / steps
    assert mean["random"] < 0.2
    assert mean["trained"] > 0.7


def test_replay_counts_what_decoding_does(base: Any, texts: list[Text], trained: ReDrafter) -> None:
    for text in texts[240:]:
        stop = int(text.ids[30])  # where it comes first the answer ends, after a draft or with a token of the model
        end = 7 + text.ids[6:].tolist().index(stop)
        for ends, stops in ((46, ()), (end, (stop,))):
            out: Decoded = speculate(base, trained, text.ids[:6].tolist(), max_new_tokens=40, stop=stops)
            assert out.ids == text.ids[6:ends].tolist()
            answer = Text(text.ids[:ends], text.loss_mask[:ends])
            assert replay(base, trained, answer) == (out.steps, out.accepted)
    with_tool = Text(texts[0].ids, np.array([False] * 6 + [True] * 10 + [False] * 5 + [True] * 25))
    halves = [Text(texts[0].ids[:16], with_tool.loss_mask[:16]), Text(texts[0].ids, np.arange(46) >= 21)]
    expected = np.sum([replay(base, trained, half) for half in halves], axis=0)
    assert replay(base, trained, with_tool) == tuple(expected), "steps end where the tool begins"


def test_the_tree_merges_common_beginnings() -> None:
    tree = Tree.of([[7, 4, 9], [7, 4, 1], [7, 2, 1]])
    assert tree.tokens == [7, 4, 9, 1, 2, 1]
    assert tree.parents == [-1, 0, 1, 1, 0, 4]
    assert tree.accepted([4, 1, 0, 0, 1, 0]) == [0, 1, 3]
    assert tree.accepted([3, 9, 0, 0, 1, 0]) == [0], "what follows a wrong token does not count"


def test_every_text_is_in_one_batch_of_an_epoch() -> None:
    rng = np.random.default_rng(3)
    rows = [Text(np.zeros(n, np.int32), np.ones(n, bool)) for n in rng.integers(3, 200, 500)]
    plan = batches(rows, 150, seed=0)
    assert sorted(i for batch in plan for i in batch) == list(range(500))
    sizes = [(len(batch), max(len(rows[i].ids) for i in batch)) for batch in plan]
    assert all(count == 1 or count * longest <= 150 for count, longest in sizes)
    first, second = epoch_order(len(plan), 0, 0), epoch_order(len(plan), 1, 0)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(len(plan)))


def test_the_stage(tmp_path: Path, tokenizer: ChatTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = tmp_path / "model"
    qwen2(tokenizer.vocab_size).save_pretrained(model)
    for file in tokenizer.folder.glob("tokenizer*"):
        shutil.copy(file, model)
    solutions = generations(tmp_path / "solutions", tokenizer, 40)
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        output = tmp_path / name
        inputs = {"generations": [solutions], "model": [model], "held_out": []}
        context = stage_context(inputs, output, seed=seed)
        stage = TrainDrafter(DrafterConfig(held_out=0.3, batch_tokens=300, epochs=2, max_tokens=45))
        asyncio.run(stage.run(context))
        digests.append(stage.digest(output))
        made = {"model.safetensors", "config.json", "lineage.json", "acceptance.json", "acceptance.md"}
        made |= {"texts.safetensors"}
        assert len({path.stat().st_mode for path in output.iterdir()}) == 1, "others may read all of it, or none"
        assert {path.name for path in output.iterdir()} == made
        facts = context.metrics
        assert facts["generations"] == 40
        assert 0 < facts["held_out"] < 40
        assert facts["held_out"] % 2 == 0, "both samples of a problem are held out, or none"
        assert facts["tokens"] <= 45 * 2 * (40 - facts["held_out"])
        assert facts["cut to max_tokens"] > 0
        assert 0 <= facts["accepted_per_step"] <= 3
    assert digests[0] == digests[1] != digests[2]
    assert any("some solutions are of m, and the drafter is for model" in message for message in caplog.messages)
    others = generations(tmp_path / "others", tokenizer, 6)
    context = stage_context({**inputs, "held_out": [others]}, tmp_path / "d", seed=1)
    asyncio.run(TrainDrafter(DrafterConfig(batch_tokens=300, draft_vocab=20, measure_every=5)).run(context))
    assert context.metrics["held_out"] == context.metrics["acceptance"]["texts"] == 6
    assert context.metrics["generations"] == 40
    assert [row["step"] for row in context.metrics["during_training"]][:1] == [5]
    assert ReDrafter.load(tmp_path / "d").shape.draft_vocab == 20
    loaded = ReDrafter.load(tmp_path / "a")
    of_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).get_input_embeddings().weight
    assert loaded.shape == DrafterShape(HIDDEN, tokenizer.vocab_size, 2, 3, model=embedding_digest(of_model.float()))
    assert loaded.is_for(of_model)
    assert not loaded.is_for(of_model * 1.01)
    assert "- model: model\n" in (tmp_path / "a" / "acceptance.md").read_text()
    tensors = tmp_path / "a" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    with pytest.raises(DamagedFile, match=r"model\.safetensors"):
        ReDrafter.load(tmp_path / "a")
    tensors.unlink()
    with pytest.raises(UserError, match=r"is missing; give.*model\.safetensors|model\.safetensors.*is missing"):
        ReDrafter.load(tmp_path / "a")
    with pytest.raises(UserError, match=r"not a drafter's config\.json; give"):
        ReDrafter.load(model)


def test_the_stage_makes_an_eagle3_head(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    model, shallow = tmp_path / "model", tmp_path / "shallow"
    for folder, layers in ((model, 7), (shallow, 6)):
        qwen2(tokenizer.vocab_size, layers=layers).save_pretrained(folder)
    for file in tokenizer.folder.glob("tokenizer*"):
        shutil.copy(file, model)
    solutions = generations(tmp_path / "solutions", tokenizer, 10)
    stage = TrainDrafter(DrafterConfig(form="eagle3", held_out=0.3, batch_tokens=300, draft_vocab=20))
    inputs = {"generations": [solutions], "model": [model], "held_out": []}
    context = stage_context(inputs, tmp_path / "head")
    stage.check({"model": [model]})
    asyncio.run(stage.run(context))
    assert Eagle3.load(tmp_path / "head").shape.draft_vocab == context.metrics["draft_vocab"] == 20
    assert context.metrics["acceptance"]["steps"] > 0
    with pytest.raises(UserError, match=r"shallow: has 6 layers; EAGLE-3 reads three of at least 7"):
        stage.check({"model": [shallow]})
    with pytest.raises(ValueError, match="layers, recurrence and kept_texts are of a redrafter"):
        DrafterConfig(form="eagle3", kept_texts=0)


def test_a_training_says_where_it_goes_on_and_which_vocabulary_is_none(
    tmp_path: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    qwen2(tokenizer.vocab_size).save_pretrained(model)
    for file in tokenizer.folder.glob("tokenizer*"):
        shutil.copy(file, model)
    inputs = {"generations": [generations(tmp_path / "solutions", tokenizer, 10)], "model": [model], "held_out": []}

    class Killed(Exception):
        pass

    def run(at: int, **settings: Any) -> list[str]:
        """Train until step ``at``, each step being saved, and return what was said."""
        context, said, done = stage_context(inputs, tmp_path / "drafter"), list[str](), count(1)

        def advance(_: int, note: str) -> None:
            if note.startswith("loss") and next(done) == at:
                raise Killed

        monkeypatch.setattr(context.progress, "log", said.append)
        monkeypatch.setattr(context.progress, "advance", advance)
        settings |= {"batch_tokens": 100, "held_out": 0.3, "save_minutes": 1e-9, "epochs": 5}
        with contextlib.suppress(Killed):
            asyncio.run(TrainDrafter(DrafterConfig(**settings)).run(context))
        return [line for line in said if "goes on" in line]

    assert run(3) == []
    (said,) = run(10**6)
    assert re.fullmatch(r"goes on at step 4 of \d+: its newest save is of step 3", said)
    size = tokenizer.vocab_size
    for rows in (size, 10 * size):
        with pytest.raises(
            UserError, match=f"model: draft_vocab {rows} is no part of the model's {size} tokens; .*0 means all"
        ):
            run(10**6, draft_vocab=rows)
    for rows in (0, size - 1):
        TrainDrafter(DrafterConfig(draft_vocab=rows)).check({"model": [model]})

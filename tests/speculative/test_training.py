"""The training of a drafter: a reduced vocabulary, going on after a kill, and what is counted on held-out texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.models.drafters import DrafterShape, ReDrafter
from nemo_openmath.speculative.acceptance import Acceptance
from nemo_openmath.speculative.decode import speculate
from nemo_openmath.speculative.frozen import Batch, KeptStates
from nemo_openmath.speculative.redrafter import RedrafterTraining
from nemo_openmath.speculative.report import page
from nemo_openmath.speculative.settings import DrafterSettings
from nemo_openmath.speculative.texts import Text, frequent_tokens, some_texts
from nemo_openmath.speculative.train import TrainedDrafter, measure, train
from tests.speculative.served import HIDDEN, VOCAB, greedy

IDS = [3, 5, 8, 13, 21, 34, 47]


def pair() -> tuple[ReDrafter, ReDrafter]:
    """A drafter of seven tokens, and one of all whose head has the same rows for these."""
    torch.manual_seed(0)
    whole = ReDrafter(DrafterShape(HIDDEN, VOCAB))
    reduced = ReDrafter(DrafterShape(HIDDEN, VOCAB, draft_vocab=len(IDS)))
    weights = whole.state_dict() | {"draft_ids": torch.tensor(IDS)}
    weights["lm_head.2.weight"] = whole.output_weight[IDS].clone()
    reduced.load_state_dict(weights)
    return whole.eval(), reduced.eval()


def test_a_reduced_vocabulary_is_the_softmax_over_its_tokens(base: Any) -> None:
    """Targets outside are in no sum; the oracle is torch's own softmax over the columns of the whole one."""
    whole, reduced = pair()
    ids = np.array([1, 5, 8, 2, 47, 3, 9, 34], np.int32)
    batch = Batch.of([Text(ids, np.ones(len(ids), bool))], base.device)
    kind = RedrafterTraining(base)
    hidden = kind.states(batch.ids)
    loss = kind.add_gradients(reduced, batch, hidden)
    expected, outside, embedded = 0.0, 0, base.get_input_embeddings()(batch.ids)[0]
    for ahead in range(3):
        terms = []
        for target in range(ahead + 2, len(ids)):
            state = torch.zeros(HIDDEN)
            for read in range(target - ahead - 1, target):
                state = whole.advance(state, embedded[read])
            scores = whole.logits(hidden[0, target - ahead - 2], state)[IDS].log_softmax(-1)
            if ids[target] in IDS:
                said = base.lm_head(hidden[0, target - 1])[IDS].softmax(-1)
                terms.append(-(said @ scores).item())
            else:
                outside += 1
        expected += sum(terms) / len(terms)
    assert loss.value == pytest.approx(expected, rel=1e-5)
    assert (loss.outside, loss.targets) == (outside, 6 + 5 + 4 - outside)


def test_a_reduced_drafter_guesses_the_best_of_its_tokens(base: Any, tmp_path: Path) -> None:
    whole, reduced = pair()
    hidden, table = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(3)), base.get_input_embeddings().weight
    state, token, guesses = torch.zeros(HIDDEN), 9, [9]
    for _ in range(3):
        state = whole.advance(state, table[token])
        token = IDS[int(whole.logits(hidden, state)[IDS].argmax())]
        guesses.append(token)
    (tmp_path / "drafter").mkdir()
    reduced.save(tmp_path / "drafter")
    loaded = ReDrafter.load(tmp_path / "drafter")
    assert loaded.beams(hidden, 9, table, 3, 1) == [guesses]
    assert {token for beam in loaded.beams(hidden, 9, table, 3, 4) for token in beam[1:]} <= set(IDS)
    assert loaded.rows(torch.arange(VOCAB)).tolist() == [IDS.index(i) if i in IDS else -1 for i in range(VOCAB)]
    prompt = [1, 2, 3]
    assert speculate(base, loaded, prompt, max_new_tokens=20).ids == greedy(base, prompt, 20)
    reduced.draft_ids[0] = VOCAB
    reduced.save(tmp_path / "drafter")
    with pytest.raises(DamagedFile, match="draft_ids are not ascending tokens of the vocabulary"):
        ReDrafter.load(tmp_path / "drafter")


def test_the_linear_recurrence_is_what_tensorrt_llm_computes(base: Any, texts: list[Text], tmp_path: Path) -> None:
    """There, s1 = W e, and s' = W e + U s + b: no activation, and no bias in the first step."""
    settings = DrafterSettings(recurrence="linear", batch_tokens=400)
    trained = train(RedrafterTraining(base), texts[:16], settings, lambda *_: None).drafter
    w, u, b = trained.rnn_w.weight, trained.rnn_u.weight, trained.rnn_u.bias
    first, second = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(0))
    expected = w @ second + u @ (w @ first) + b
    torch.testing.assert_close(trained.advance(trained.advance(torch.zeros(HIDDEN), first), second), expected)
    (tmp_path / "drafter").mkdir()
    trained.save(tmp_path / "drafter")
    assert ReDrafter.load(tmp_path / "drafter").shape.recurrence == "linear"
    with torch.no_grad():
        b += 1
    trained.save(tmp_path / "drafter")
    with pytest.raises(DamagedFile, match=r"rnn_u\.bias is not 0"):
        ReDrafter.load(tmp_path / "drafter")
    with torch.no_grad():
        w[0, 0] = float("nan")
    trained.save(tmp_path / "drafter")
    with pytest.raises(DamagedFile, match="a weight is not finite"):
        ReDrafter.load(tmp_path / "drafter")
    config = tmp_path / "drafter" / "config.json"
    config.write_text(config.read_text().replace('"draft_tokens": 3', '"draft_tokens": 0'))
    with pytest.raises(UserError, match=r"not a drafter's config\.json"):
        ReDrafter.load(tmp_path / "drafter")


def test_the_tokens_that_the_model_wrote_most() -> None:
    text = Text(np.array([9, 9, 9, 4, 4, 7, 2, 2], np.int32), np.array([False] * 3 + [True] * 5))
    assert frequent_tokens([text], 2, 10).tolist() == [2, 4]
    assert frequent_tokens([text], 8, 10).tolist() == [2, 4, 7], "what it never wrote has no row"
    assert frequent_tokens([text], 0, 10) is None
    assert frequent_tokens([text], 10, 10) is None


def test_the_texts_that_are_kept_are_those_of_the_model_and_have_a_bound() -> None:
    texts = [Text(np.arange(10 * i, 10 * i + 6, dtype=np.int32), np.arange(6) >= 2) for i in range(9)]
    texts[4] = Text(np.arange(99, dtype=np.int32), np.arange(99) >= 2)
    kept = some_texts(texts, 13, seed=1)
    assert len(kept) == 3, "four tokens each; the long one has no room"
    assert all(ids.tolist() == list(range(10 * (int(ids[0]) // 10) + 2, 10 * (int(ids[0]) // 10) + 6)) for ids in kept)
    assert [a.tolist() for a in some_texts(texts, 13, seed=2)] != [a.tolist() for a in kept]
    assert some_texts(texts, 0, seed=1) == []


class Killed(BaseException):
    pass


def trained(base: Any, texts: list[Text], state: Path, until: int = 10**9, **changed: Any) -> TrainedDrafter:
    """Train; each step is saved, and the training is killed in the middle of step ``until``."""

    def on_step(step: int, steps: int, loss: float) -> None:
        if step == until:
            raise Killed

    settings = DrafterSettings(
        epochs=2, batch_tokens=400, draft_vocab=40, measure_every=4, save_seconds=2.0, **{"seed": 5, **changed}
    )
    seconds = iter(range(10**6))
    return train(
        RedrafterTraining(base), texts[:40], settings, on_step, held_out=texts[40:44], state_file=state,
        clock=lambda: next(seconds),
    )  # fmt: skip


def test_a_killed_training_makes_the_same_drafter(base: Any, texts: list[Text], tmp_path: Path) -> None:
    whole = trained(base, texts, tmp_path / "whole")
    state = tmp_path / "state"
    for until in (1, 3, 7, 8):  # before the first save; in the first epoch; in the second, twice
        with pytest.raises(Killed):
            trained(base, texts, state, until)
        state.with_name("state.partial").write_bytes(b"cut off")
    resumed = trained(base, texts, state)
    for name, tensor in whole.drafter.state_dict().items():
        assert torch.equal(tensor, resumed.drafter.state_dict()[name]), name
    assert resumed.measured == whole.measured
    assert [row["step"] for row in whole.measured] == [4, 8]
    assert (resumed.loss, resumed.targets, resumed.outside) == (whole.loss, whole.targets, whole.outside)
    assert resumed.acceptance == whole.acceptance
    other = trained(base, texts, state, seed=6)  # a state of another training is not gone on with
    assert not torch.equal(other.drafter.output_weight, whole.drafter.output_weight)
    state.write_bytes(b"damaged")
    assert trained(base, texts, state).loss == whole.loss


def test_states_that_have_no_room_are_made_again() -> None:
    kept, made = KeptStates(limit=80), []

    def make() -> torch.Tensor:
        made.append(1)
        return torch.ones(16)

    for key in ("a", "b", "a", "b", "a"):
        assert kept.get(key, torch.device("cpu"), make).sum() == 16
    assert len(made) == 3, "a is kept, b is made twice"


def test_the_steps_are_those_of_a_server_that_stops_at_the_end_of_a_turn() -> None:
    """The example of acceptance.py, and one with a tool: by hand, what goes through the model's passes."""
    written = np.array([0, 0, 1, 1, 1, 1, 1, 1], bool)
    answer = Text(np.array([2, 3, 7, 4, 9, 1, 5, 0], np.int32), written)  # 0 ends it
    # drafts behind 7 (made at 3): 4 9 right, then 2; behind 1 (made at 9): 5 0, and one behind the end
    one = Acceptance(3)
    one.add(answer, [0, 2, 3, 3, 2, 1, 0], outside=0)
    assert (one.steps, one.tokens, one.tokens_per_step) == (2, 5, 2.5)
    assert (one.accepted, one.judged, one.jointly) == ([2, 2, 0], [2, 2, 1], [1.0, 1.0, 0.0])
    # the model says <end> itself: a pass for each token behind the first, and none behind the end
    alone = Acceptance(3)
    alone.add(answer, [0] * 7, outside=0)
    assert (alone.steps, alone.tokens, alone.accepted, alone.judged) == (5, 5, [0, 0, 0], [5, 0, 0])
    assert alone.jointly == [0.0, 0.0, 0.0]
    # 7 4 | a tool's 9 1 | 5 0: the tool's output is read like a prompt, and gives 5
    tool = Acceptance(3)
    tool.add(Text(answer.ids, written & ~np.array([0, 0, 0, 0, 1, 1, 0, 0], bool)), [0, 3, 0, 0, 0, 3, 0], outside=0)
    assert (tool.steps, tool.tokens, tool.accepted, tool.judged) == (2, 2, [2, 0, 0], [2, 0, 0])
    assert tool.jointly == [1.0, None, None], "nothing says whether a second one would have been right"


def test_what_is_counted_on_held_out_texts(base: Any, texts: list[Text]) -> None:
    acceptance = Acceptance(3)
    text = Text(np.arange(12, dtype=np.int32), np.arange(12) >= 2)
    # of 10 tokens the prompt gives one; steps give 3 + 1, 0 + 1, 2 + 1, and the last token, which no step follows
    acceptance.add(text, [1, 3, 1, 1, 1, 0, 2, 1, 1, 0, 0], outside=4)
    counted = acceptance.to_json()
    assert counted["steps_by_accepted"] == [2, 0, 1, 1]
    assert (counted["accepted"], counted["judged"]) == ([2, 2, 1], [4, 2, 2])
    assert counted["by_position"] == [0.5, 1.0, 0.5]
    assert counted["jointly"] == [0.5, 0.5, 0.25]
    assert counted["accepted_per_step"] == 1.25
    assert counted["tokens_per_step"] == 2.25
    assert counted["outside_draft_vocab"] == 0.4
    trained = TrainedDrafter(None, 1, 0.0, 1, 0.0, 1, 0, acceptance, [{"step": 5, **counted}])
    told = page(trained, {"form": "redrafter", "steps": 1})
    assert told.startswith("# ReDrafter: what it saves\n\n**2.25 tokens a step instead of 1**, on 1 held-out text")
    assert "| 2 | 2 | 2 | 100.0% | 50.0% |" in told
    assert "All 3 drafts are accepted in 25% of the steps. The paper's had so in 65%" in told
    assert "| 5 | 1.25 | 2.25 | 25.0% | 1 |" in told
    told = page(trained, {"form": "eagle3", "steps": 1})
    assert told.startswith("# EAGLE-3 head: what it saves")
    assert "ReDrafter" not in told
    assert "paper" not in told
    random = measure(RedrafterTraining(base), pair()[1], texts[:4])
    missing = [int(i) for text in texts[:4] for i in text.ids[text.loss_mask] if i not in IDS]
    assert random.outside == len(missing)
    nothing = Acceptance(3)
    assert nothing.line() == "nothing held out to measure"
    assert nothing.to_json()["accepted_per_step"] is None

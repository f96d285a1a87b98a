"""EAGLE-3: the layer against transformers' Llama modules, its training, and the folder that engines read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.models.drafter_shape import Eagle3Shape
from nemo_openmath.models.eagle3 import Eagle3
from nemo_openmath.speculative.eagle3 import Eagle3Training, Unrolled
from nemo_openmath.speculative.frozen import Batch
from nemo_openmath.speculative.settings import DrafterSettings
from nemo_openmath.speculative.soft_loss import soft_cross_entropy
from nemo_openmath.speculative.texts import Text
from nemo_openmath.speculative.train import measure, train
from tests.speculative.served import HIDDEN, VOCAB, own_texts, qwen2

IDS = torch.arange(1, VOCAB, 3)
SHAPE = Eagle3Shape(HIDDEN, VOCAB, 7, 4, 2, 8, 64, 1e-6, 1e4, 512, 3, len(IDS))


@torch.no_grad()
def random_head(seed: int = 0) -> Eagle3:
    torch.manual_seed(seed)
    head = Eagle3(SHAPE)
    for name, parameter in head.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0, 0.3)
    head.set_draft_ids(IDS)
    return head.eval()


class Oracle:
    """The same head from transformers' Llama modules, which decodes one token after the other."""

    def __init__(self, head: Eagle3):
        s = head.shape
        config = LlamaConfig(
            hidden_size=s.hidden,
            intermediate_size=s.intermediate,
            num_attention_heads=s.heads,
            num_key_value_heads=s.kv_heads,
            head_dim=s.head_dim,
            rms_norm_eps=s.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": s.rope_theta},
        )
        config._attn_implementation = "eager"
        self.layer, self.rotary = LlamaDecoderLayer(config, 0), LlamaRotaryEmbedding(config)
        for name in "qkv":
            projection = getattr(head.midlayer.self_attn, f"{name}_proj")
            setattr(self.layer.self_attn, f"{name}_proj", nn.Linear(*reversed(projection.weight.shape), bias=False))
        weights = head.midlayer.state_dict()
        self.hidden_norm = LlamaRMSNorm(s.hidden, s.norm_eps)
        self.hidden_norm.weight.data = weights.pop("hidden_norm.weight")
        self.layer.load_state_dict(weights)
        self.head = head

    @torch.no_grad()
    def last(self, states: list[Tensor], embeddings: list[Tensor]) -> Tensor:
        """The layer's output at the end of a sequence of states and embeddings (hidden,)."""
        state, embedding = torch.stack(states)[None], torch.stack(embeddings)[None]
        x = torch.cat([self.layer.input_layernorm(embedding), self.hidden_norm(state)], dim=-1)
        tokens = x.shape[1]
        mask = torch.full((tokens, tokens), float("-inf")).triu(1)[None, None]
        turned = self.rotary(x, torch.arange(tokens)[None])
        attended, _ = self.layer.self_attn(hidden_states=x, position_embeddings=turned, attention_mask=mask)
        after = state + attended
        return (after + self.layer.mlp(self.layer.post_attention_layernorm(after)))[0, -1]

    def chain(self, fused: Tensor, embeddings: list[Tensor], root: int, steps: int, embed: Any) -> list[tuple]:
        """(output, guess) of each step from ``root``; ``embed(step, guess)`` is what the next one reads."""
        states, read = list(fused[: root + 1]), embeddings[: root + 1]
        made = []
        for step in range(steps):
            output = self.last(states, read)
            guess = int(IDS[(self.head.lm_head.weight @ self.head.norm(output)).argmax()])
            made.append((output, guess))
            states, read = [*states, output], [*read, embed(step, guess)]
        return made


@torch.no_grad()
def test_all_roots_at_once_are_transformers_layer_decoding_from_each() -> None:
    head = random_head()
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(2, 9, 3 * HIDDEN, generator=generator)
    embeddings = torch.randn(2, 12, HIDDEN, generator=generator)
    unrolled, oracle = Unrolled(head, states), Oracle(head)
    outputs = [unrolled.step(embeddings[:, step : step + 9 - step]) for step in range(3)]
    for row in range(2):
        fused = head.fc(states[row])
        for root in range(7):
            made = oracle.chain(
                fused, list(embeddings[row]), root, 3, lambda step, _, r=row, t=root: embeddings[r, t + step + 1]
            )
            for step, (output, _) in enumerate(made):
                torch.testing.assert_close(outputs[step][row, root], output, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def deep() -> Any:
    return qwen2(layers=7)


@pytest.fixture(scope="module")
def deep_texts(deep: Any) -> list[Text]:
    return own_texts(deep, count=80, tokens=30)


def test_its_guesses_are_those_of_decoding(deep: Any, deep_texts: list[Text]) -> None:
    head, kind, text = random_head(), Eagle3Training(deep), deep_texts[0]
    ids = torch.from_numpy(text.ids).long()
    states = kind.states(ids[None])[0]
    drafts = kind.drafts(head, ids, states)
    hidden = deep.model(ids[None], output_hidden_states=True)
    read = torch.cat([hidden.hidden_states[layer][0] for layer in (2, 3, 4)], dim=-1)
    torch.testing.assert_close(states, torch.cat([read, hidden.last_hidden_state[0]], dim=-1))
    table, oracle = deep.get_input_embeddings().weight, Oracle(head)
    for root in range(0, len(ids) - 1, 5):
        made = oracle.chain(head.fc(read), list(table[ids[1:]]), root, 3, lambda _, guess: table[guess])
        right = [root + 2 + i < len(ids) and guess == ids[root + 2 + i] for i, (_, guess) in enumerate(made)]
        assert drafts[root] == int(np.cumprod(right).sum())
    guessed = ids.clone()
    guessed[11] = oracle.chain(head.fc(read), list(table[ids[1:]]), 9, 1, lambda _, guess: table[guess])[0][1]
    assert kind.drafts(head, guessed, states)[9] >= 1, "a guess that is right is counted"


def test_the_soft_loss_is_torchs_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    features, said = torch.randn(2, 70, 8, generator=generator)
    weight, teacher = torch.randn(2, 5, 8, generator=generator)
    ours, theirs = ([t.clone().requires_grad_() for t in (features, weight)] for _ in range(2))
    loss = soft_cross_entropy(*ours, said, teacher)
    expected = torch.nn.functional.cross_entropy(
        theirs[0] @ theirs[1].t(), (said @ teacher.t()).softmax(-1), reduction="sum"
    )
    torch.testing.assert_close(loss, expected)
    (loss * 0.5).backward()
    (expected * 0.5).backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_loss_counts_what_the_model_wrote_and_the_head_can_guess(deep: Any, deep_texts: list[Text]) -> None:
    """Against the mean written out: of step j, times 0.8^j, over tokens of the model that have a row."""
    rows = [deep_texts[0], Text(deep_texts[1].ids[:17], deep_texts[1].loss_mask[:17])]
    head, kind, batch = random_head(), Eagle3Training(deep), Batch.of(rows, deep.device)
    states = kind.states(batch.ids)
    loss = kind.add_gradients(head, batch, states)
    ours = {name: p.grad.clone() for name, p in head.named_parameters()}
    head.zero_grad()
    table, unrolled = deep.get_input_embeddings().weight, Unrolled(head, states[..., : 3 * HIDDEN])
    expected, targets, outside = torch.zeros(()), 0, 0
    for step in range(3):
        output = unrolled.step(table[batch.ids[:, step + 1 : -1]])
        terms = []
        for row, text in enumerate(rows):
            for root in range(len(text.ids) - step - 2):
                token = int(text.ids[root + step + 2])
                if not text.loss_mask[root + step + 2]:
                    continue
                if token not in IDS:
                    outside += 1
                    continue
                logits = head.lm_head.weight @ head.norm(output[row, root])
                says = deep.lm_head.weight[IDS] @ states[row, root + step + 1, 3 * HIDDEN :]
                terms.append(-(says.softmax(-1) * logits.log_softmax(-1)).sum())
        targets += len(terms)
        expected = expected + 0.8**step * torch.stack(terms).mean()
    assert (loss.targets, loss.outside) == (targets, outside)
    assert loss.value == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_a_trained_head_is_accepted(deep: Any, deep_texts: list[Text], tmp_path: Path) -> None:
    losses: list[float] = []
    kind = Eagle3Training(deep)
    settings = DrafterSettings(epochs=6, lr=5e-3, batch_tokens=600, measure_every=10, draft_vocab=40)
    trained = train(
        kind, deep_texts[:72], settings, lambda *step: losses.append(step[2]), held_out=deep_texts[72:]
    )  # fmt: skip
    untrained = measure(kind, kind.new(deep_texts[:72], settings, ()).eval(), deep_texts[72:])
    assert losses[-1] < 0.8 * losses[0]
    assert trained.acceptance.accepted_per_step > 2 * untrained.accepted_per_step
    assert trained.acceptance.draft_tokens == 3
    trained.drafter.save(tmp_path)
    again = measure(kind, Eagle3.load(tmp_path), deep_texts[72:])
    assert again == trained.acceptance


def test_the_folder_is_what_engines_read(tmp_path: Path) -> None:
    random_head().save(tmp_path)
    tensors, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    attention = {f"midlayer.self_attn.{name}_proj.weight" for name in "qkvo"}
    mlp = {f"midlayer.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    norms = {f"midlayer.{name}.weight" for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm")}
    others = {"fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d"}
    assert set(tensors) == attention | mlp | norms | others
    assert tensors["midlayer.self_attn.q_proj.weight"].shape == (4 * 8, 2 * HIDDEN)
    assert tensors["fc.weight"].shape == (HIDDEN, 3 * HIDDEN)
    assert (tensors["d2t"] + torch.arange(len(IDS))).tolist() == IDS.tolist()
    assert tensors["t2d"].nonzero().flatten().tolist() == IDS.tolist()
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    assert (config["vocab_size"], config["draft_vocab_size"]) == (VOCAB, len(IDS))
    assert config["eagle_aux_hidden_state_layer_ids"] == [2, 3, 4]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
    loaded = Eagle3.load(tmp_path)
    assert loaded.rows(torch.tensor([0, 1, 4, 5])).tolist() == [-1, 0, 1, -1]
    save_file(tensors | {"t2d": ~tensors["t2d"]}, tmp_path / "model.safetensors")
    with pytest.raises(DamagedFile, match="d2t and t2d say different tokens"):
        Eagle3.load(tmp_path)
    whole = Eagle3(replace(SHAPE, draft_vocab=0))
    whole.save(tmp_path)
    assert not {"d2t", "t2d"} & set(load_file(tmp_path / "model.safetensors")), "vLLM has no place for them"
    assert Eagle3.load(tmp_path).rows(torch.arange(VOCAB)).tolist() == list(range(VOCAB))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not an EAGLE-3 head's config"):
        Eagle3.load(tmp_path)


def test_a_model_of_few_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"has 2 layers; EAGLE-3 reads three of at least 7; use form: redrafter"):
        Eagle3Training(qwen2())

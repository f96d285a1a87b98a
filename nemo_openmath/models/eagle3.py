"""EAGLE-3 (arXiv 2503.01840): one decoder layer that drafts from three hidden states of the model it serves.

At position t the drafter reads the hidden states of a low, a middle and a high layer, fused by ``fc``, beside the
embedding of token t+1, which the model has decided, and guesses token t+2. Then it goes on alone: its own output stands
for the fused state of the next position.

    position     t               t+1                 t+2
    reads        fc(low;mid;high) its output at t     its output at t+1          g
                 e(t+1)          e(guess t+2)        e(guess t+3)               e
    layer        a = g + attention([norm(e); norm(g)]);  out = a + mlp(norm(a))
    guess        t+2             t+3                 t+4                        lm_head(norm(out))

The folder is the Hugging Face form that vLLM, SGLang and TensorRT-LLM's PyTorch backend read: the tensors have these
module's names. Of a reduced vocabulary, ``d2t[i]`` is the served model's token of row i minus i, and ``t2d`` marks the
tokens that have a row.
Embeddings are the served model's own and are not kept here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from nemo_openmath.core.errors import DamagedFile, UserError
from nemo_openmath.models.drafter_shape import EAGLE3_ARCHITECTURE, TRAINED, Eagle3Shape, refuse_untrained_drafts
from nemo_openmath.models.tensor_files import save_tensors

_TENSORS = "model.safetensors"


class Eagle3Attention(nn.Module):
    """The projections of the layer's attention; its input is twice as wide as its output."""

    def __init__(self, shape: Eagle3Shape):
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(2 * shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(2 * shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(2 * shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value (rows, heads, tokens, head_dim) of x (rows, tokens, 2 hidden); query and key are
        rotated for ``positions`` (tokens,)."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        half = self.shape.head_dim // 2
        rates = self.shape.rope_theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angles = positions[:, None].float() * rates
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        return _rotated(q, cos, sin), _rotated(k, cos, sin), v


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Eagle3Mlp(nn.Module):
    def __init__(self, shape: Eagle3Shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Eagle3Layer(nn.Module):
    def __init__(self, shape: Eagle3Shape):
        super().__init__()
        self.self_attn = Eagle3Attention(shape)
        self.mlp = Eagle3Mlp(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.hidden_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)

    def query_key_value(self, state: Tensor, embedding: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what attention is made from, of states and embeddings (rows, tokens, hidden)."""
        x = torch.cat([self.input_layernorm(embedding), self.hidden_norm(state)], dim=-1)
        return self.self_attn(x, positions)

    def output(self, state: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output (rows, tokens, hidden), from its state and attention (rows, heads, tokens,
        head_dim)."""
        after = state + self.self_attn.o_proj(attended.transpose(1, 2).flatten(2))
        return after + self.mlp(self.post_attention_layernorm(after))


class Eagle3(nn.Module):
    """The EAGLE-3 head of one model. It computes in its parameters' dtype."""

    d2t: Tensor
    t2d: Tensor

    def __init__(self, shape: Eagle3Shape):
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(3 * shape.hidden, shape.hidden, bias=False)
        self.midlayer = Eagle3Layer(shape)
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.lm_head = nn.Linear(shape.hidden, shape.head_rows, bias=False)
        self.register_buffer("d2t", torch.zeros(shape.head_rows, dtype=torch.int64))
        self.register_buffer("t2d", torch.arange(shape.vocab) < shape.head_rows)

    def set_draft_ids(self, ids: Tensor) -> None:
        """Make row i of the head guess token ``ids[i]``, ascending."""
        self.d2t = ids - torch.arange(len(ids), device=ids.device)
        self.t2d = torch.zeros(self.shape.vocab, dtype=torch.bool, device=ids.device).index_fill(0, ids, True)

    @property
    def draft_ids(self) -> Tensor:
        """The token that each row of the head guesses."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def tokens(self, rows: Tensor) -> Tensor:
        """Return the tokens that ``rows`` of the head guess."""
        return rows + self.d2t[rows]

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the rows of the head that guess ``tokens``; -1 for those that it cannot guess."""
        return torch.where(self.t2d[tokens], self.t2d.cumsum(0)[tokens] - 1, -1)

    def features(self, output: Tensor) -> Tensor:
        """Return what the head's matrix is applied to, from the layer's output (..., hidden)."""
        return self.norm(output)

    def logits(self, output: Tensor) -> Tensor:
        """Return the logits (..., head_rows) of the guess made from the layer's output (..., hidden)."""
        return linear(self.features(output), self.lm_head.weight)

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` into an existing folder."""
        tensors = self.state_dict()
        if not self.shape.draft_vocab:  # vLLM has no place for them then, and refuses the folder
            del tensors["d2t"], tensors["t2d"]
        save_tensors(tensors, folder / _TENSORS)
        dtype = str(self.lm_head.weight.dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(hf_config(self.shape, dtype), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Eagle3:
        """Read a head from its folder. Raises UserError where the folder holds none, or its config.json asks for more
        guesses than it was trained for; DamagedFile where its tensors are not those of its config.json."""
        path = folder / "config.json"
        try:
            shape = shape_of(config := json.loads(path.read_text()))
            refuse_untrained_drafts(config, folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "give the output of a stage drafter.train with form: eagle3"
            raise UserError("not an EAGLE-3 head's config.json", file=path, remedy=remedy) from error
        head = cls(shape)
        try:
            whole = {} if shape.draft_vocab else {"d2t": head.d2t, "t2d": head.t2d}
            head.load_state_dict(load_file(folder / _TENSORS) | whole)
        except Exception as error:
            raise DamagedFile(folder / _TENSORS, f"not the tensors of its config.json ({error})") from error
        marked = head.t2d.nonzero().flatten()
        if not torch.equal(head.draft_ids, marked):
            raise DamagedFile(folder / _TENSORS, "d2t and t2d say different tokens")
        return head.eval()


def hf_config(shape: Eagle3Shape, dtype: str) -> dict[str, Any]:
    """Return config.json as engines read it.

    vLLM counts a layer's input (``eagle_aux_hidden_state_layer_ids`` at the top), SGLang the output of the layer before
    (in ``eagle_config``): both name the same hidden states, which are also TensorRT-LLM's choice.
    """
    return {
        "architectures": [EAGLE3_ARCHITECTURE],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": 1,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "max_position_embeddings": shape.max_positions,
        "vocab_size": shape.vocab,
        "draft_vocab_size": shape.head_rows,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "eagle_aux_hidden_state_layer_ids": list(shape.read_layers),
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in shape.read_layers],
        },
        "draft_tokens": shape.draft_tokens,
        TRAINED: shape.draft_tokens,
        "target_num_hidden_layers": shape.target_layers,
    }


def shape_of(config: dict[str, Any]) -> Eagle3Shape:
    """Return the sizes that a config.json says. Raises KeyError or ValueError where it is another's."""
    if config["architectures"] != [EAGLE3_ARCHITECTURE]:
        raise ValueError("architectures")
    vocab, rows = config["vocab_size"], config["draft_vocab_size"]
    return Eagle3Shape(
        hidden=config["hidden_size"],
        vocab=vocab,
        target_layers=config["target_num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        intermediate=config["intermediate_size"],
        norm_eps=config["rms_norm_eps"],
        rope_theta=config["rope_theta"],
        max_positions=config["max_position_embeddings"],
        draft_tokens=config["draft_tokens"],
        draft_vocab=0 if rows == vocab else rows,
    )

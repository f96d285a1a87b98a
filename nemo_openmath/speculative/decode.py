"""Greedy speculative decoding: several tokens in one pass of the model, the same tokens as without a drafter.

A step starts from a hidden state h and the token that the model decided from it. The drafter's beams begin with that
token and are merged into a tree, in which common beginnings stand once. The model reads the tree in one pass; each node
sees the text and its own ancestors (tree attention, arXiv 2403.09919). The longest path on which every token is what
the model itself says is taken, and the last hidden state of the path starts the next step.

    beams    7 4 9        nodes  7 4 9 1       sees   7          the model says 4 after 7 and 9 after 4:
             7 4 1                                    7 4        7 4 9 is taken, and what it says after 9
             7 2 1               2 1                  7 4 9      begins the next step
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nemo_openmath.models.drafters import ReDrafter


@dataclass(slots=True)
class Decoded:
    """The outcome of :func:`speculate`."""

    ids: list[int] = field(default_factory=list)  # new tokens, the stop token included
    steps: int = 0  # passes of the model after the prompt's, which gives the first token
    accepted: int = 0  # drafted tokens among ``ids``


@dataclass(frozen=True, slots=True)
class Tree:
    """Beams merged by common beginnings. Node 0 is the root."""

    tokens: list[int]  # of each node
    parents: list[int]  # of each node; that of the root is -1

    @classmethod
    def of(cls, beams: Sequence[Sequence[int]]) -> Tree:
        """Merge ``beams``, which all begin with the same token."""
        tree, index = cls([], []), dict[tuple[int, ...], int]()
        for beam in beams:
            parent = -1
            for end in range(1, len(beam) + 1):
                if (key := tuple(beam[:end])) not in index:
                    index[key] = len(tree.tokens)
                    tree.tokens.append(beam[end - 1])
                    tree.parents.append(parent)
                parent = index[key]
        return tree

    def path(self, node: int) -> list[int]:
        """Return the nodes from the root to ``node``."""
        path = []
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def accepted(self, says: Sequence[int]) -> list[int]:
        """Return the nodes of the longest path from the root on which each token is what the model says after its
        parent. ``says`` holds the model's token after each node."""
        is_right = [True]
        for node in range(1, len(self.tokens)):
            parent = self.parents[node]
            is_right.append(is_right[parent] and says[parent] == self.tokens[node])
        return max((self.path(node) for node in range(len(is_right)) if is_right[node]), key=len)


@torch.no_grad()
def speculate(
    base: Any,
    drafter: ReDrafter,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop: Collection[int] = (),
    beams: int = 1,
) -> Decoded:
    """Continue ``prompt`` greedily until a token of ``stop`` or ``max_new_tokens``, at least one.

    ``base`` is a transformers causal language model; ``beams`` is the width of the drafter's search.

    The output is that of plain greedy decoding up to the rounding of sums: where two tokens' logits are equal to the
    last bits, a pass over several tokens may decide otherwise than a pass over one.
    """
    cache = DynamicCache(config=base.config)
    embeddings = base.get_input_embeddings().weight
    dtype = next(drafter.parameters()).dtype
    ids = torch.tensor([list(prompt)], device=base.device)
    hidden = base.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0, -1]
    token = int(base.lm_head(hidden).argmax())
    out = Decoded([token])
    while out.ids[-1] not in stop and len(out.ids) < max_new_tokens:
        tree = Tree.of(drafter.beams(hidden.to(dtype), token, embeddings, drafter.shape.draft_tokens, beams))
        states = _read_tree(base, tree, cache)
        says = base.lm_head(states).argmax(-1).tolist()
        path = tree.accepted(says)
        drafted, token = [tree.tokens[node] for node in path[1:]], says[path[-1]]
        new = [*drafted, token][: max_new_tokens - len(out.ids)]
        end = next((i + 1 for i, new_token in enumerate(new) if new_token in stop), len(new))
        out.ids += new[:end]
        out.steps += 1
        out.accepted += min(end, len(drafted))
        _keep(cache, path, len(tree.tokens))
        hidden = states[path[-1]]
    return out


def _read_tree(base: Any, tree: Tree, cache: DynamicCache) -> Tensor:
    """Return the hidden states (nodes, hidden) of one pass over the tree; the cache grows by its nodes."""
    known, nodes = cache.get_seq_length(), len(tree.tokens)
    mask = torch.full((1, 1, nodes, known + nodes), torch.finfo(base.dtype).min, dtype=base.dtype)
    mask[..., :known] = 0
    positions = []
    for node in range(nodes):
        path = tree.path(node)
        mask[0, 0, node, [known + ancestor for ancestor in path]] = 0
        positions.append(known + len(path) - 1)
    return base.model(
        input_ids=torch.tensor([tree.tokens], device=base.device),
        attention_mask=mask.to(base.device),
        position_ids=torch.tensor([positions], device=base.device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[0]


def _keep(cache: DynamicCache, path: Sequence[int], nodes: int) -> None:
    """Keep those of ``path`` among the tree's ``nodes`` entries at the end of the cache."""
    known = cache.get_seq_length() - nodes
    for layer in cache.layers:
        entries = torch.tensor([*range(known), *(known + node for node in path)], device=layer.keys.device)
        layer.keys, layer.values = layer.keys.index_select(2, entries), layer.values.index_select(2, entries)

"""Training speed on CPU, one thread, fp32: our packed step against transformers' and against padded batches.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--seconds 20] [--sizes 1m 20m]

Tokens per CPU second (not wall time: other work on the machine shifts it less), rounds of both sides alternating, and
the median of the rounds' ratios. A round is one optimizer step on the same samples: forward, backward, clip and AdamW.

transformers: ``Qwen2ForCausalLM`` with SDPA, packed flash-style (position ids restart at each sample), pack by pack.
padded: the same samples in random batches of 8, each padded to its longest, in our engine (which computes no logits of
padding) and in transformers'; grouped: sorted by length first. A few samples in random batches pad a fifth more or less
by luck; the order taken is one that pads as random batches of very many samples do on average.

Lengths: log-normal, median 6000, sigma 1, cut to 32768, divided by 16. An assumption, also openmath plan's: the paper
(arXiv 2504.16891) gives the limits of its solutions, 16K and 32K tokens, not their distribution. Random batches of 8
then compute 2.6 x the tokens and 2.9 x the FLOPs of packs; with sigma 0.8 it would be 2.4 x and 2.7 x.

attention: forward and backward of one layer over 8192 tokens, as one sample and as shorter ones: its cost is to follow
the sum of squared lengths.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from nemo_openmath.training.runtime import parallel_state_of, start_process

for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
    os.environ.setdefault(name, value)
start_process("cpu")

import torch  # noqa: E402

from nemo_openmath.data.packs.pack import Pack, concatenate  # noqa: E402
from nemo_openmath.models.attention import whole_samples  # noqa: E402
from nemo_openmath.models.build import build_model, load_hf  # noqa: E402
from nemo_openmath.models.configs import ModelConfig  # noqa: E402
from nemo_openmath.models.packed import pack_batch  # noqa: E402
from nemo_openmath.models.segment_attention import attend  # noqa: E402
from nemo_openmath.training.config import TrainingConfig  # noqa: E402
from nemo_openmath.training.forward_backward import ForwardBackward, total_loss  # noqa: E402
from nemo_openmath.training.optimizer import Optimizer  # noqa: E402

SIZES = {
    "1m": ModelConfig(2048, 128, 352, 4, 4, 2, 32, tie_word_embeddings=True, max_position_embeddings=4096),
    "20m": ModelConfig(8192, 384, 1024, 10, 6, 2, 64, tie_word_embeddings=True, max_position_embeddings=4096),
}
PACK_TOKENS = 2048
PROMPT_SHARE = 0.2  # of each sample, not trained


def long_tailed_lengths(count: int, random: np.random.Generator) -> list[int]:
    """See above. Evenly spaced quantiles in a random order: a few samples stand for many."""
    ranks = random.permutation((np.arange(count) + 0.5) / count)
    normal = statistics.NormalDist()
    return [int(n) for n in np.clip([375 * np.exp(normal.inv_cdf(float(r))) for r in ranks], 16, PACK_TOKENS)]


def typical_order(count: int, random: np.random.Generator) -> list[int]:
    """Long-tailed lengths in that of 500 random orders whose batches of 8 come nearest to the average padding, in
    tokens and in squared lengths."""

    def padding(lengths: list[int]) -> np.ndarray:
        groups = np.array(lengths, np.float64).reshape(-1, 8)
        longest = np.broadcast_to(groups.max(axis=1, keepdims=True), groups.shape)
        return np.array([longest.sum() / groups.sum(), (longest**2).sum() / (groups**2).sum()])

    average = padding(long_tailed_lengths(1 << 16, random))
    orders = [long_tailed_lengths(count, random) for _ in range(500)]
    return min(orders, key=lambda order: float(np.abs(padding(order) / average - 1).sum()))


def sample(length: int, padded: int, vocabulary: int, random: np.random.Generator) -> Pack:
    """One sample of random tokens, padded as a segment of its own."""
    tokens = np.zeros(padded, np.int32)
    tokens[:length] = random.integers(1, vocabulary, length)
    loss_mask = np.zeros(padded, bool)
    loss_mask[int(PROMPT_SHARE * length) : length - 1] = True
    return Pack(tokens, np.roll(tokens, -1), loss_mask, np.array([0, padded], np.int32), ("",))


def packed(lengths: list[int], vocabulary: int, random: np.random.Generator) -> list[Pack]:
    """First-fit packs of PACK_TOKENS."""
    bins: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        for pack_lengths in bins:
            if sum(pack_lengths) + length <= PACK_TOKENS:
                pack_lengths.append(length)
                break
        else:
            bins.append([length])
    return [concatenate([sample(n, n, vocabulary, random) for n in pack_lengths]) for pack_lengths in bins]


def padded(lengths: list[int], vocabulary: int, random: np.random.Generator) -> list[Pack]:
    """Batches of 8 in the given order, each padded to its longest sample."""
    groups = [lengths[i : i + 8] for i in range(0, len(lengths), 8)]
    return [concatenate([sample(n, max(group), vocabulary, random) for n in group]) for group in groups]


class Ours:
    def __init__(self, model: ModelConfig, weights: dict[str, torch.Tensor]):
        config = TrainingConfig(warmup=0.0)
        models = build_model(model, config.parallel)
        load_hf(models, model, weights.__getitem__)
        self.optimizer = Optimizer.build(models, config)
        self.forward_backward = ForwardBackward(models, self.optimizer.chunks, model, config.parallel)

    def step(self, batch: list[Pack]) -> float:
        self.optimizer.zero_grad()
        part = self.forward_backward.run(self.forward_backward.shard(batch))
        norm, (loss, _) = self.optimizer.gradient_norm(), total_loss(part)
        self.optimizer.step(norm, 1e-5)
        return loss


class Transformers:
    def __init__(self, model: torch.nn.Module):
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01, betas=(0.9, 0.95))

    def step(self, batch: list[Pack]) -> float:
        count, total = sum(pack.num_target_tokens for pack in batch), 0.0
        for pack in batch:
            labels = np.full(len(pack.tokens), -100)
            labels[1:] = np.where(pack.loss_mask[:-1], pack.labels[:-1], -100)  # transformers shifts them itself
            loss = self.model(
                input_ids=torch.from_numpy(pack.tokens).long().unsqueeze(0),
                position_ids=torch.from_numpy(pack.position_ids()).long().unsqueeze(0),
                labels=torch.from_numpy(labels).unsqueeze(0),
                num_items_in_batch=torch.tensor(count),
                use_cache=False,
            ).loss
            loss.backward()
            total += float(loss.detach())
        self._update()
        return total

    def step_padded(self, batch: list[Pack]) -> None:
        """Each pack, of samples of one padded length, as a batch [samples, length] with a mask."""
        count = sum(pack.num_target_tokens for pack in batch)
        for pack in batch:
            rows = len(pack.sample_ids)
            tokens = torch.from_numpy(pack.tokens).long().view(rows, -1)
            labels = torch.from_numpy(np.where(np.roll(pack.loss_mask, 1), pack.tokens, -100)).long().view(rows, -1)
            self.model(
                input_ids=tokens,
                attention_mask=(tokens > 0).long(),
                labels=labels,
                num_items_in_batch=torch.tensor(count),
                use_cache=False,
            ).loss.backward()
        self._update()

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def against(sides: dict[str, Callable[[], Any]], work: dict[str, int], seconds: float) -> dict[str, float]:
    """Work per CPU second of each side, medians over alternating rounds."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()
    end = time.monotonic() + seconds
    while time.monotonic() < end or not all(rates.values()):
        for name, run in sides.items():
            start = time.process_time()
            run()
            rates[name].append(work[name] / (time.process_time() - start))
    first = next(iter(rates.values()))
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
        print(
            f"  {name:28} {statistics.median(values):9,.0f} per CPU second   ratio {ratio:.2f}   rounds {len(values)}"
        )
    return {name: statistics.median(values) for name, values in rates.items()}


def attention(seconds: float) -> None:
    """CPU seconds of one attention over packs of as many tokens, by length of their samples."""
    tokens, heads, groups, size = 8192, 4, 2, 64
    shape = ModelConfig(2048, heads * size, 352, 1, heads, groups, size)
    query, key, value = (torch.randn(tokens, n, size, requires_grad=True) for n in (heads, groups, groups))

    def run(length: int) -> Callable[[], None]:
        cu = np.arange(0, tokens + 1, length, dtype=np.int32)
        zeros = np.zeros(tokens, np.int32)
        batch = pack_batch(zeros, zeros, np.ones(tokens, bool), cu, shape)

        def once() -> None:
            attend(query, key, value, whole_samples(batch), size**-0.5).sum().backward()

        return once

    lengths = (8192, 2048, 512)
    print(" attention, squared lengths (in millions); a ratio of 1 follows their sum:")
    squares = {f"samples of {n}": tokens // n * n * n // 1_000_000 for n in lengths}
    against({name: run(n) for name, n in zip(squares, lengths, strict=True)}, squares, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each comparison")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    from transformers import AutoConfig, AutoModelForCausalLM

    for size in options.sizes:
        shape, random = SIZES[size], np.random.default_rng(0)
        raw = shape.to_hf("float32")
        config = AutoConfig.for_model(raw.pop("model_type"), **raw)
        theirs = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        weights = {name: value.clone() for name, value in theirs.state_dict().items()}
        with parallel_state_of(TrainingConfig().parallel, seed=0):
            ours, them = Ours(shape, weights), Transformers(theirs)
            lengths = long_tailed_lengths(16, random)
            batch = packed(lengths, shape.vocab_size, random)
            tokens = sum(len(pack.tokens) for pack in batch)
            print(f"{size}: {shape.num_parameters:,} parameters, {len(batch)} packs, {tokens} tokens a step")
            first = ours.step(batch), them.step(batch)
            print(f"  the same loss: ours {first[0]:.5f}, transformers {first[1]:.5f}")
            print(" packed, tokens:")
            sides = {"ours": lambda: ours.step(batch), "transformers": lambda: them.step(batch)}  # noqa: B023
            against(sides, dict.fromkeys(sides, tokens), options.seconds)
            if size == "1m":
                attention(options.seconds / 2)
                lengths = typical_order(32, random)
                kinds = {
                    "packed": packed(lengths, shape.vocab_size, random),
                    "padded, random batches of 8": padded(lengths, shape.vocab_size, random),
                    "padded, grouped by length": padded(sorted(lengths), shape.vocab_size, random),
                }
                print(" packing, target tokens:")
                for name, packs in kinds.items():
                    total, squares, targets = (
                        sum(getattr(pack, what) for pack in packs) if what else sum(len(pack.tokens) for pack in packs)
                        for what in ("", "attention_cost", "num_target_tokens")
                    )
                    print(f"  {name:28} {total} tokens, {shape.flops(total, squares, targets):.3g} FLOPs a step")
                runs = {name: (lambda packs=packs: ours.step(packs)) for name, packs in kinds.items()}  # noqa: B023
                same = kinds["transformers, random batches of 8"] = kinds["padded, random batches of 8"]
                runs["transformers, random batches of 8"] = partial(them.step_padded, same)
                targets = {name: sum(pack.num_target_tokens for pack in packs) for name, packs in kinds.items()}
                against(runs, targets, options.seconds)


if __name__ == "__main__":
    main()

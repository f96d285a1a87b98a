"""Pack samples of different lengths into sequences of the training length, so that almost nothing is padding.

python examples/python/packing.py
"""

import numpy as np

from nemo_openmath.data.packs.packing import pack

CAPACITY = 32_768  # tokens of a sequence (paper section 5.1)
rng = np.random.default_rng(seed=0)
lengths = np.clip(rng.lognormal(mean=np.log(6000), sigma=0.8, size=100_000).astype(int), 16, CAPACITY)

pack_of_sample, packs = pack(
    lengths, CAPACITY, seed=0
)  # [samples] the pack of each sample, and how many packs there are
filled = np.bincount(pack_of_sample, weights=lengths)
assert filled.max() <= CAPACITY

print(f"{len(lengths):,} samples of {lengths.mean():,.0f} tokens in {packs:,} packs")
print(f"fill: {lengths.sum() / (packs * CAPACITY):.3%}; one sample a sequence: {lengths.mean() / CAPACITY:.1%}")

"""Training data in four steps, each a folder that imports only from those before it.

    rows/      published data -> SftRow records: a prompt and a transcript that knows who wrote what
    tokens/    rows -> token files: ids and loss mask of every sample, memory-mapped and checksummed
    packs/     token files -> a plan: which samples lie together in a row of 32K tokens
    batches/   a plan -> the batches of a training run, and the share of each data-parallel rank

Over all of them: ``stats.py`` (what packs hold), ``verify.py`` (every byte against its checksum). Under them:
``section_file.py`` (the container of both file formats), ``permutation.py`` (shuffles that never change),
``workers.py`` (processes). The stages of a recipe stand in each folder's ``stage.py`` or ``stages.py``.

The names below are the public surface:

    write_tokens(rows, tokenizer, folder)                     -> TokenFolder
    write_packs(folder, capacity=32768, mixture=Mixture(...)) -> PackPlan
    PackedData.open(folder, batch_samples=1024, epochs=6)     -> a PackSource: the batch of each step, a list of Pack
    shard_batch(batch, ranks, parallel)                       -> the packs of each rank, padded for the layout
    pack(lengths, capacity)                                   -> the packing alone, on lengths
    assign(costs, ranks), imbalance(costs, shares)            -> the balancing alone, on costs
"""

from nemo_openmath.data.batches.balance import assign, imbalance
from nemo_openmath.data.batches.batch_sharding import shard_batch
from nemo_openmath.data.batches.packed_data import PackedData
from nemo_openmath.data.batches.source import PackSource
from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.data.packs.packing import pack
from nemo_openmath.data.packs.plan import PackPlan
from nemo_openmath.data.packs.write import Mixture, write_packs
from nemo_openmath.data.tokens.token_file import Sample, TokenFolder
from nemo_openmath.data.tokens.tokenization import write_tokens

__all__ = [
    "Mixture",
    "Pack",
    "PackPlan",
    "PackSource",
    "PackedData",
    "Sample",
    "TokenFolder",
    "assign",
    "imbalance",
    "pack",
    "shard_batch",
    "write_packs",
    "write_tokens",
]

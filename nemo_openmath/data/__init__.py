"""SFT data: rows -> token files -> packs -> the batches of a training run.

write_tokens(rows, tokenizer, folder)       token files: memory-mapped, checksummed, resumable (token_file.py)
write_packs(folder, capacity=32768)         which samples lie together: best fit on lengths (packing.py)
PackedData.open(folder, batch_samples=1024, epochs=6)     what the trainer reads (pack_types.py)
"""

from nemo_openmath.data.batches.balance import assign, imbalance
from nemo_openmath.data.batches.packed_data import PackedData
from nemo_openmath.data.batches.source import PackSource
from nemo_openmath.data.packs.pack import Pack
from nemo_openmath.data.packs.packing import pack
from nemo_openmath.data.packs.plan import PackPlan
from nemo_openmath.data.packs.write import Mixture, write_packs
from nemo_openmath.data.tokens.token_file import TokenFolder
from nemo_openmath.data.tokens.tokenization import write_tokens

__all__ = [
    "Mixture",
    "Pack",
    "PackPlan",
    "PackSource",
    "PackedData",
    "TokenFolder",
    "assign",
    "imbalance",
    "pack",
    "write_packs",
    "write_tokens",
]

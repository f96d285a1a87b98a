"""Token files -> a plan of packs.

bin_packing.py   the algorithms, on counts of lengths
packing.py       lengths -> the pack of each sample
write.py         token folders and a mixture -> the plan
plan.py          the plan's format, and reading it
pack.py          a pack itself: laid out, padded, joined, taken apart
stage.py         the stage sft.pack
"""

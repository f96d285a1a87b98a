"""SFT rows -> token files.

tokenization.py   rows -> shards of a token folder, by any number of processes, resumable
token_file.py     the format: written once, mapped by any number of ranks
samples.py        several token folders seen as one list of samples
stage.py          the stage sft.tokenize
"""

"""Checkpoints: average, merge, convert, export; exact, streaming, in bounded memory.

checkpoint.py   open_checkpoint and write_checkpoint: any format, tensors under Hugging Face names
convert.py      Hugging Face <-> Megatron, and both to TensorRT-LLM
inspect.py      what a checkpoint is, and how two differ
merge/          averages and merges
quantize/       quantized exports
formats/        the file formats, one module each
names.py        Hugging Face names <-> Megatron's stored names
lazy.py         tensors that lie in files, and tensors computed from them
streaming.py    elements on their way into a file: read ahead, checked, hashed, written
model_files.py  config.json, the tokenizer's files, generation_config.json
output.py       output folders that appear whole or not at all
stages.py       averaging, merging and quantizing as stages of a recipe
script.py       what the scripts of conversion/ share
methods.py      names of merging methods and quantized formats
"""

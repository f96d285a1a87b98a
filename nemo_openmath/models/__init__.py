"""Qwen2.5 and dense Qwen3 on megatron-core: configurations, weights mapping, packed attention, fused loss.

hf_config.py   the one reader of config.json: which fields are used, refused, or cannot change the numbers
shapes.py      tensors held against the shapes that a configuration asks for
configs.py     ModelConfig, presets, HF config.json both ways
layout.py      Parallel: which products of TP, PP, CP, DP are valid
hf_mapping.py  HF <-> Megatron tensors: the table of a model, and pure functions
packed.py      one micro-batch on one rank: boundaries, positions, zig-zag split
attention.py   attention inside each sample, context parallel
norm.py        RMSNorm that sequence parallelism accepts
loss.py        output layer and cross-entropy fused, target positions only
devices.py     where a model runs outside of a training: the CPU or a GPU with room
drafter_shape.py  the sizes of drafters, known without torch
eagle3.py      the EAGLE-3 head, and its folder as engines read it
drafters.py    ReDrafter, which drafts tokens for a model, and its folder
stop_tokens.py where the texts of a model end, as its files say it
build.py       the Megatron model of a layout; loading HF weights into it
cpu_compat.py  megatron-core without CUDA, and the releases of it that are known
"""

"""Optional adapter: trains on this project's packs with NeMo 2.x (``llm.finetune``), in an environment of its own.

    from nemo_openmath.integrations.nemo.recipes import finetune_recipe
    recipe = finetune_recipe("qwen2.5-math-1.5b", packs="runs/1.5b/packs1", checkpoint="imported/Qwen2.5-Math-1.5B")
    nemo_run.run(recipe, executor=...)

``packs.py``        packs as NeMo's packed SFT expects them (torch alone; the core's tests cover it)
``data_module.py``  the Lightning data module
``recipes.py``      the four sizes; their numbers are read from ``examples/``, there is no second copy

**Environment.** nemo-toolkit 2.7.3 pins transformers 4.57 and numpy below 2, which the core excludes. Of this package
the adapter uses the token-file reader and the recipe's numbers alone, and both run there. In an NGC container with NeMo
2.x: ``pip install --no-deps nemo-openmath && pip install orjson``. Elsewhere ``requirements.txt`` beside this file
makes such an environment; with the newest pyarrow, datasets or leptonai instead of its pins NeMo does not import, and
with megatron-core 0.16 its trainer fails on ``strategies.tensorstore``, which is no more.
Nothing else of this package imports the adapter.

**Its future.** Upstream deprecates the collection: "nemo.collections.llm is deprecated and will be removed in a future
major NeMo FW container release"; its README (2025-10-10) announces that NeMo 2.0 with LLMs is replaced by
Megatron-Bridge and AutoModel, and the repository turns to speech. 2.7.3 is the last release with it. For new work train
with ``openmath sft``; this adapter is for clusters that run NeMo 2.x already.

**Traps of 2.7.3 that the adapter steers around.**

- Under context parallelism its data step (with megatron-core 0.15 and 0.16) cuts a packed row, and its table of
  boundaries, as if it were one sample. :func:`~nemo_openmath.integrations.nemo.packs.packed_data_step` cuts every
  sample by itself.
- Without ``calculate_per_token_loss`` the loss is the mean of the packs' means: a token of a pack with few target
  tokens counts more. The recipes set it, and the loss is the core's: the sum over target tokens by their number in the
  batch.
- Its 1.5B configuration has separate output weights; Qwen2.5-Math-1.5B ties them. The recipes say so.
- Its importer without TransformerEngine leaves every layer's norms at 1.0 and says nothing: import with it installed.
"""

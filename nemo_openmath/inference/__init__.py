"""Whatever generates text, behind one protocol (``core/engine.py``), and the rollouts that use it.

Start with ``open.py``: the settings of an engine, and the open engine. What it opens is one of three:

- ``embedded/``: a model in this process, with compiled kernels on a CPU
- ``http/``: a client of OpenAI-compatible servers
- ``replay.py``: recorded completions, given again

On top of an engine:

- ``asking.py``: one question, and its answer
- ``rollout/``: generate, run code, continue; the stage ``rollout.generate``
- ``serving/``: ``openmath serve``, for the embedded engine, vLLM, SGLang and TensorRT-LLM

``free_memory.py`` says what memory this machine has.
"""

"""Whatever generates text, behind one protocol, and the rollouts that use it.

open.py      the engine that a configuration names
embedded/    an engine in this process, with compiled kernels on a CPU
http/        a client of OpenAI-compatible servers
serving/     servers: our own, and vLLM, SGLang and TensorRT-LLM started and watched
rollout/     generate, run code, continue
replay.py    recorded completions given again
"""

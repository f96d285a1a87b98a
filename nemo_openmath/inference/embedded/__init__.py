"""An engine inside this process, on the CPU or one GPU. From the outside in:

- ``engine.py``: :class:`EmbeddedEngine`, requests from asyncio to the decoding thread and back
- ``scheduler.py``: the decoding thread; ``batch.py``: one turn of all requests (continuous batching)
- ``requests.py``, ``rows.py``: what is known of a request; ``text.py``: token ids to text, stop strings
- ``prefix_sharing.py``, ``prefix.py``: what a request need not compute, because another one has
- ``decoder.py``: the interface of what computes the model; ``torch_decoder.py``: in torch; ``compiled.py``: in C, which
  ``kernels.py`` compiles
- ``sampling.py``: the distribution of a token; ``drawing.py``: the next token of each row, or several
- ``drafters.py``: what can guess tokens; ``proposers.py``: its interface; ``ngrams.py``, ``redrafter.py``: who guesses;
  ``drafting.py``: the guesses of a turn; ``pace.py``: how many of them are verified
- ``weights.py``: a Hugging Face folder laid out for decoding
- ``memory.py``: how much memory is used; ``cache.py``, ``cache_budget.py``: that of keys and values
"""

from nemo_openmath.inference.embedded.engine import EmbeddedEngine

__all__ = ["EmbeddedEngine"]

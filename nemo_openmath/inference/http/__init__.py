"""A client of OpenAI-compatible servers.

- ``client.py``: :class:`HTTPEngine`, an engine behind HTTP
- ``dialects.py``: what each kind of server wants to be told, ``answers.py``: how it answers, ``sse.py``: its streams,
  ``tool_calls.py``: the tool that a model may call
- ``transport.py``: requests over HTTP, and what their failures mean
- ``retrying.py``: which failures are tried again, ``server_pool.py``: on which server
- ``model_names.py``: the names of the model, ``same_tokens.py``: whether its tokenizer is ours
"""

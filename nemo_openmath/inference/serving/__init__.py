"""Servers: the embedded engine over HTTP, and model servers started, watched and started again.

- ``openai_server.py``: :class:`OpenAIServer`, any engine over the OpenAI protocol, which ``wire.py`` reads and writes
- ``embedded_server.py``: the process that serves the embedded engine so
- ``launch.py``: which server to start, ``options.py``: the options of the embedded one
- ``supervise.py``: a server process kept alive (``openmath serve``), ``server_output.py``: what it prints
"""

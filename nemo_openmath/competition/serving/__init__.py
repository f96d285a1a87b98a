"""The solver behind a door: over HTTP with a live page, and in the shape of Kaggle's evaluation API.

- ``settings.py``: what a command line says of the solver, as its settings
- ``opening.py``: what the solver borrows, opened and closed
- ``service.py``: questions one at a time, with a time bank
- ``server.py``, ``page.py``: the service over HTTP, and its live page

Kaggle's shape is ``competition/kaggle.py``.
"""

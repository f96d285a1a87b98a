"""The solver behind a door: over HTTP with a live page, and in the shape of Kaggle's evaluation API.

- ``settings.py``: what a command line says of the solver, as its settings
"""

"""Metadata lives in pyproject.toml; this file keeps `python setup.py`-era container scripts working."""

from setuptools import setup

setup()

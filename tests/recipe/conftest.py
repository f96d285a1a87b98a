"""Recipes here name kinds of stages of the demo."""

from nemo_openmath.cli.registry import register_all

register_all()

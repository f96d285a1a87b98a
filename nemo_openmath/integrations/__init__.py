"""Adapters to other frameworks, each in an environment of its own. Nothing in the package imports them."""

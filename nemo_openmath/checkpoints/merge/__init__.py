"""Checkpoints combined into one: averages, and merges by five published methods."""

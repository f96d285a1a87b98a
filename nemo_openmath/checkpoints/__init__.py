"""Checkpoints: average, merge, convert, export; exact, streaming, in bounded memory."""

"""Quantized exports of a model, and the plain weights that they stand for."""

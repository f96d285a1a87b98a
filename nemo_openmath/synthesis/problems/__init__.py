"""From forum threads to a clean problem set (paper section 2.1)."""

from nemo_openmath.synthesis.problems import answers, classify, convert, decontaminate, extract, read

__all__ = ["answers", "classify", "convert", "decontaminate", "extract", "read"]

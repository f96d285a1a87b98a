"""Names of merging methods and quantized formats; apart from their code, so that reading a recipe imports no torch."""

from typing import Literal

Method = Literal["linear", "slerp", "task_arithmetic", "ties", "dare"]
QuantizedFormat = Literal["fp8", "fp8_kv", "int8", "int4_awq"]
Layout = Literal["modelopt", "compressed-tensors"]
NEEDS_BASE = ("task_arithmetic", "ties", "dare")

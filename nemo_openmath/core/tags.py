"""The tags of the released OpenMath-Nemotron models and of nvidia/OpenMathReasoning.

The models were trained on these strings and the data contains them: changing one makes both unusable.
"""

THINK_START = "<think>"
THINK_END = "</think>"
CODE_START = "<tool_call>"
CODE_END = "</tool_call>"
TAGS = (THINK_START, THINK_END, CODE_START, CODE_END)

"""Known cases that are planted among the units of stages which ask a model, so that they are measured while they run.

cases.py   what a known case is for each stage, and what the stage should make of it
bank.py    files of cases, shipped (cases/) or the user's own
plant.py   ControlledStage: settings, and the cases in the order in which they are planted

How planting works, and where what is seen is stored: core/stage/controls.py. Sensitivity and specificity:
evaluation/controls.py.
"""

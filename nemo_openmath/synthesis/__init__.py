"""Data that is made (paper sections 2 to 4): problems, solutions, judgements, selections."""

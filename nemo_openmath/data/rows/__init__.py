"""From generations and foreign files to SFT rows: reading, selection, formatting."""

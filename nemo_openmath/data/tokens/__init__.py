"""From SFT rows to token files: memory-mapped, checksummed, resumable."""

"""The five MinAtar games (Young and Tian 2019, arXiv 1903.03176)."""

"""ZeroSearch: train language models to search, without searching (arXiv 2505.04588)."""

__version__ = "0.2.0"

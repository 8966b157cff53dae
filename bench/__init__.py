"""Reproducible benchmarks; each is run as `python -m bench.NAME`, with its results in `results/`."""

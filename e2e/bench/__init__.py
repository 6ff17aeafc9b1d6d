"""Benchmarks: `python -m e2e.bench reconcile | ... | datapath | all`, or `make bench BENCH=...`."""

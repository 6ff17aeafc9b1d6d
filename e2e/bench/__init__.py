"""Benchmarks: `python -m e2e.bench reconcile | reload | all`, or `make bench BENCH=...`."""

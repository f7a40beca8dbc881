"""Benchmarks, one script a claim. A package, because Opacus installs one of this name, which would be found instead."""

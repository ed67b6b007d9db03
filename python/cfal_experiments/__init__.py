"""Experiments with the Center-Focused Affinity Loss on real data.

The package trains small systems (model + loss) and compares them. It uses the public API of
`cfal_kernels` only. `python -m cfal_experiments.demo` is the entry point.
"""

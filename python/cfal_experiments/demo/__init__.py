"""The demo: losses compared on one task, in one printout (`python -m cfal_experiments.demo`).

It is small on purpose: a training loop of one screen, images in memory, no files written. The
harness around it trains the same losses and models on whole data sets.
"""

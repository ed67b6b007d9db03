"""The demo: losses compared on one task, in one printout (`python -m cfal_experiments.demo`).

Data, splits, batches, models, losses, optimizers and scores are the harness's. The demo has a
training loop of one screen in place of the harness's runs, keeps images in memory and leaves no
files.
"""

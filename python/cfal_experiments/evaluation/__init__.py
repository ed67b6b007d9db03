"""Evaluation: scores of saved or fresh predictions, plots, ensembles."""

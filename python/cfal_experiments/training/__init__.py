"""Training: from a configuration to a run folder that holds everything it came from and led to."""

"""Several configurations, each with several seeds, side by side."""

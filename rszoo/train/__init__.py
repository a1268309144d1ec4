"""Training: recipes in, runs and model folders out. `python -m rszoo.train` is `rszoo train`, for torchrun."""

"""The PyTorch engine: training steps under torchrun or alone."""

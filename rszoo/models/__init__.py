"""The PyTorch and Keras models: built, filled with weights, adapted, saved."""

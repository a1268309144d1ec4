"""TensorFlow's checkpoint container: an index, and tensors with their CRC32C."""

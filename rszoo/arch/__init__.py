"""The network, described once and without a framework: sizes, the walk over the tensors, and their names."""

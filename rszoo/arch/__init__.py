"""The network, described once and without a framework: its sizes, the walk over its tensors, their names."""

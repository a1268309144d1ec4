"""From checkpoints to model folders and back, without TensorFlow.

The way of the data: `read` (archive, folder, prefix, file, URL or name) -> a reader of tensors by name, such as
`tensorbundle` -> `formats` (which kind of checkpoint it is, what its tensors are called) -> `account` (every variable
accounted for) -> `convert` (model folder); and `write_back` from a model folder to a checkpoint.
"""

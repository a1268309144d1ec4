"""From TensorFlow checkpoints to model folders and back, without TensorFlow.

The data's way: `source` (archive, folder, prefix, URL or name) -> `archive` -> `sstable` and `tensorbundle` ->
`account` (every variable accounted for) -> `convert` (model folder) -> `parity` (verification).
"""

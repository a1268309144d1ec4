"""The bytes of a checkpoint, wherever it lies: an archive, a folder, a prefix, a URL."""

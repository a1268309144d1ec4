"""The networks: one module per framework, each built from an `ArchConfig` and nothing else."""

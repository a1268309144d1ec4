"""The model folder: its files, the records in them, and how they are written."""

"""The model card, made from the files that are pushed."""

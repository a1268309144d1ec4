"""One file for each format of these weights: how it is recognized, named, and written back."""

"""Proof that a model folder is right: its checks, the original graph as their reference, and the demo."""

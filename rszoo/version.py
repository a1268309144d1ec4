"""The version of rszoo: here and nowhere else, so that any module may name it without importing the package's names."""

__version__ = "0.1.0"

"""Tests of rszoo and its converters."""

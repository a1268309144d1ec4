"""The tensors of one safetensors file, on this machine or behind a URL, read when asked for."""

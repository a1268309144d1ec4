"""The tensors of one safetensors file, on this machine or at a URL, read on access."""

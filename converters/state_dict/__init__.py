"""Files in which PyTorch keeps state dicts: safetensors, and what `torch.save` wrote."""

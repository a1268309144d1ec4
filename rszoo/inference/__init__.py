"""Images in, logits and classes out: preprocessing and a model ready to predict."""

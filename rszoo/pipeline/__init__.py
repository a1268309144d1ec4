"""Images on their way to a network, as `tf.data`: sources, crops, RandAugment, batches for training and evaluation."""

"""The Keras engine: training steps on TensorFlow's strategies and on JAX."""

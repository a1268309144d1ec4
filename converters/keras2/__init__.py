"""Files of Keras 2 (tf_keras), read without it: HDF5, and the zip archive `.keras`."""

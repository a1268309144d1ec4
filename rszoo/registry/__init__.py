"""What is published: the manifest, which archive to trust, and how images are preprocessed."""

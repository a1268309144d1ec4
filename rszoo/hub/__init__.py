"""The Hugging Face Hub: models found and fetched there, model folders pushed to it."""

"""Model folders pushed to the Hugging Face Hub."""

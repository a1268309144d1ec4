"""Reading the Hugging Face Hub: addresses, the files of a repository, and what its errors mean."""

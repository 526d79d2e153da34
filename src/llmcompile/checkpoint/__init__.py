"""Opens Hugging Face checkpoints: where they are, what is in them, and reading ranges of their tensors."""

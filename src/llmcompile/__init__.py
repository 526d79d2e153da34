"""llmcompile: Hugging Face checkpoints to ready-to-serve artifacts, proved right before they ship."""

__version__ = "0.1.0"

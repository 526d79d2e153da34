"""A unified Hugging Face checkpoint as TensorRT-LLM's PyTorch backend reads it, written apart from what makes one."""

"""TensorRT-LLM: checkpoint folders, and engines by the vendor's builder."""

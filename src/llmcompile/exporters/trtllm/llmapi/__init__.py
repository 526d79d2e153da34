"""The Hugging Face folder that TensorRT-LLM's LLM API serves: no engine, quantized as nvidia-modelopt exports it."""

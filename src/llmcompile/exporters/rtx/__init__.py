"""TensorRT for RTX: a model as ONNX, and engines built of it with no GPU present."""

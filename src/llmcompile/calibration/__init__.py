"""How large a model's activations are: the model run on a text, layer by layer, on the CPU in float32."""

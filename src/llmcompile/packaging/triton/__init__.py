"""The serving target Triton: a model repository with a config.pbtxt for each model."""

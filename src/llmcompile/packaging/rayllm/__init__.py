"""The RayLLM target."""

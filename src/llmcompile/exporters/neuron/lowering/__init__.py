"""From torch.export to a static HLO module: the only exporter code that imports jax."""

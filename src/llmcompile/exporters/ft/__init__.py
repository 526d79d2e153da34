"""FasterTransformer: pre-sharded tensor-parallel checkpoints, one headerless file per tensor and rank."""

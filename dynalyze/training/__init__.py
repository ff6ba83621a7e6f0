"""PyTorch training runs: heads and transformers, data, loop, checkpoints."""

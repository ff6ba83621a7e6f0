"""Any PyTorch module with product weights, as a model."""

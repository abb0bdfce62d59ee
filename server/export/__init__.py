"""A run's model in forms that others take: ONNX, TorchScript, safetensors; checked, described, and served."""

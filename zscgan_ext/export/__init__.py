"""Files to deploy a quantized classifier: ONNX and packed safetensors."""

"""A classifier's graph as an ONNX file: written operator by operator, then proven."""

"""The ONNX engine: a training step as a plain ONNX graph, and its runner without torch."""

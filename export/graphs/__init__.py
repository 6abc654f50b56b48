"""The ONNX graphs of a bundle: their definitions, tracing, folding, mixed precision, and writing with the weights."""

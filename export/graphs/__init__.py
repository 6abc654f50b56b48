"""The ONNX graphs of a bundle: what each computes, traced, folded, in mixed precision, and written with its weights."""

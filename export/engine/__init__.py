"""Bundles to TensorRT engines. Nothing here imports torch: it runs on the device."""

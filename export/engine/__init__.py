"""Build TensorRT engines from bundles. Nothing here imports torch: it runs on the device."""

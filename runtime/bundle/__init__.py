"""The bundle format: strict readers of the manifest, the weight file, the class names and the engine records."""

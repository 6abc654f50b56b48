"""The inputs of an export: a recipe, and weights from a checkpoint (local or downloaded) or from a formula."""

"""Measurements of a bundle on this machine: time, memory, energy, and PyTorch beside them."""

"""Measure time, memory and energy of a bundle on this machine, and compare with PyTorch or the C++ runtime."""

"""Serve a model repository without a container, and measure what the server costs."""

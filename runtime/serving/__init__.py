"""What Triton Inference Server runs: a process that holds a pipeline and draws requests that wait together."""

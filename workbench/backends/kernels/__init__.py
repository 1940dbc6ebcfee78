"""Kernels for NVIDIA GPUs: Triton where it is at the ceiling, CUDA C++ compiled at run time where it is not."""

"""Triton kernels, installed as `gradalign.kernels`."""

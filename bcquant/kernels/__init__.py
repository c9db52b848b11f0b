"""Compiled kernels: thin bindings that check shapes and release the GIL."""

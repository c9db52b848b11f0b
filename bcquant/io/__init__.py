"""Bytes to arrays and back: checkpoint readers and writers (numpy; torch in torch_bin alone)."""

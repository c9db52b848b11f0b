"""The order of a quantization run, its resume journal and its report."""

"""The executable specification of quantized weights: grids, packing, file layouts (numpy only)."""

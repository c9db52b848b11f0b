"""Calibration: text to tokens, activations layer by layer, second moments of a module's input."""

"""bcquant: quantize a language-model checkpoint and prove what was written."""

__version__ = "0.1.0"

"""Perplexity against size, for bcquant and its peers: one file a tool, one judge for all."""

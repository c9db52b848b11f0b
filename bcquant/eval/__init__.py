"""Figures of a model on text."""

"""Decoder families as tables (no torch), and the one decoder that computes all of them (torch).

`source.open_model` turns any checkpoint into canonical LLaMA names; `decoder.Decoder` runs it.
"""

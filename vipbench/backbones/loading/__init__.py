"""Weights, tokenizers and processors of the backbones."""

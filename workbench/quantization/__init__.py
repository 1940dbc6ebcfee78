"""Weights and ranges -> quantized weights."""

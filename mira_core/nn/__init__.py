"""Layers, encoders, decoder, prior: tensors in, tensors out."""

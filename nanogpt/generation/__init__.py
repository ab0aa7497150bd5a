"""Sampling and decoding: from a trained model to text, without any training code."""

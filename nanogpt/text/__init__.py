"""Corpora, the character tokenizer and batches of windows."""

"""Transformer, tokenizer and their checkpoints; attention comes in as a callable."""

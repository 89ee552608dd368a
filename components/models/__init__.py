"""Encoders, what they see, and how a volume becomes a vector: built on by pretraining, evaluation and serving."""

"""Pretraining: the two recipes' encoders, views, losses and one loop; Ray Train is a thin driver round it."""

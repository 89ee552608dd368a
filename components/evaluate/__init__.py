"""Evaluation of a frozen encoder, beside untrained ones and baselines: cases, features, tasks, and their report."""

"""Evaluation of a frozen encoder: probes, retrieval and test-retest stability, beside baselines, with intervals."""

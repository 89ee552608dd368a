"""Figures of merit: pure functions on arrays, for many resamplings of the patients at once.

Most take weights of shape (replicates, cases): row 0 holds ones and gives the figure itself; each other row says how
often a case's patient was drawn. They return (replicates,), NaN where a replicate has no such figure.
"""

"""Stored baselines as data that somebody reviews: shown, accepted, listed and pruned."""

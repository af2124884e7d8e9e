"""Measurements of a pipeline; each returns plain frozen data."""

"""Verdicts from plain numbers; imports no arrays."""

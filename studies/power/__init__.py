"""How often the verdicts miss a regression or blame a healthy commit."""

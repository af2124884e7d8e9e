"""A level built as a diffusers pipeline."""

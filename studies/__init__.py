"""Studies of the pipelines and of the bench; not part of the installed package."""

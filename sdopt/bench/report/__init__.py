"""What a run shows: progress while it works, the ladder table at its end."""

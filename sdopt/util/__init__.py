"""What every part uses: files, hardware, child processes, progress."""

"""The command line, `sdopt`: thin commands over the library, above everything else."""

"""What an `apply_*` of `sdopt.pipeline` needs beyond a call or two of diffusers."""

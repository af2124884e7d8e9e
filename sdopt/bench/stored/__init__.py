"""What is kept of former runs: histories, images, latents, limits and counts."""

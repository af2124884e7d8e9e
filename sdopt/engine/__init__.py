"""One image as one CUDA graph over fused kernels: text encoder, denoising loop and decoder."""

"""Which steps and layers of a UNet may reuse features, measured on the miniature."""

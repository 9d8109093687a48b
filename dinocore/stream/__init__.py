"""Many images: read-ahead, batches of the same shape, slices of large images, and video."""

"""Many images: read ahead, batches of one shape, slices of large ones, and films."""

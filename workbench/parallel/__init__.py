"""Who am I among the ranks: the mapping of layers and channels, and the communicators."""

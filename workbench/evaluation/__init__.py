"""Measurements that return frames and print nothing: layer differences, perplexity, speed."""

"""TensorRT only: building, checking and running engines."""

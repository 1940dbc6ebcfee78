"""How the operations run: the plain torch oracle, fast CPU kernels, TensorRT layers."""

"""tactician: an open inference optimizer and runtime with the API of NVIDIA TensorRT."""

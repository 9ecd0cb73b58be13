"""One function per TensorFlow operator, grouped by family."""

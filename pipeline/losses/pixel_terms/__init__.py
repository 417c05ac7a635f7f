"""Loss terms on the pixels of the image, one module each."""

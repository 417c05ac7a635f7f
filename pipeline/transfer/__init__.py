"""One style transfer, from its inputs to the image."""

"""One style transfer, from its input pictures to the generated image."""

"""VGG-19 and the small network: layers, weights, rescaling."""

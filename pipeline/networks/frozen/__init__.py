"""VGG-19 and the small network with fixed weights and hand-written gradients, for the losses."""

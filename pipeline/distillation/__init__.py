"""How the embedded network is trained to approximate VGG-19."""

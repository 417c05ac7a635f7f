"""Loss terms on statistics of the network's layers, one module each."""

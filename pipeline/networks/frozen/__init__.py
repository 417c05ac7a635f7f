"""The same networks with fixed weights and hand-written gradients, as losses need them."""

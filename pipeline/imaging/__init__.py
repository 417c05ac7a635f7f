"""Pictures: where they come from, their files, and the tensors made of them."""

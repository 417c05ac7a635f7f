"""L-BFGS for one large tensor: the optimizer, its history, and its inverse Hessian."""

"""Side-by-side figures of isoloss and named peers: speed, optimum reached, published numbers."""

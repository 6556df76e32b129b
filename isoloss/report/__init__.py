"""Takes runs, fits, predictions and plans, gives pictures of them."""

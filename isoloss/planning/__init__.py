"""Takes a fit and a budget, gives a plan: the point to train at, its loss and costs, exchange rates."""

"""takes runs, predictions and outcomes, gives a file that keeps them all and says how good the predictions were."""

"""One file per model family: which projections hold heads and neurons, and how to slice them."""

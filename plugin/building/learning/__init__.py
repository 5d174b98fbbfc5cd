"""How forecast weights and full steps are learnt: batches of runs, the fit of the weights, the search for the steps."""

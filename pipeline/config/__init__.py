"""params.yaml: its sections as validated models, and the plan of each experiment."""

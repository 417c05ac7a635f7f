"""Changes to params.yaml by a command: presets, and experiments that are added."""

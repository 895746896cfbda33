"""The laboratory: rules for alerts, run over a model's recorded past before they are turned on."""

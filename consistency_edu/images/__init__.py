"""Training on images: recipes, methods, and the run around the training loop."""

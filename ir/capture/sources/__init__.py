"""Where a model comes from: factories and transformers configurations."""

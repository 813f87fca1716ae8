"""Text forms of models and plans."""

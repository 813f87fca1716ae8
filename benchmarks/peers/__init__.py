"""The engines that Plait's programs are compared with, and the models that both train."""

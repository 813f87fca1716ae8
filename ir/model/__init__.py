"""What a model is: tensors, meshes, layouts, loops, functions and calls."""

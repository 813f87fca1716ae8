"""Print the kernels of compression programs as C++ and Triton source."""

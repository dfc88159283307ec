"""What others take to bring the same tensors to another GPU, and what this package takes: one module a way.

Each module with a `main` is a process of its own that sees one GPU. `parts` starts them and makes of what they say
the timings that `benchmarks.gpu_side_by_side` prints.
"""

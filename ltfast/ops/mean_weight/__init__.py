"""The weight of a row in the mean over the labels that are not ignored. Triton's kernels read it on the GPU, so that
nothing waits for the number; the C++ kernels count for themselves."""

"""The weight of a row in the mean over the labels that are not ignored. The Triton kernels read it on the GPU, so that
the CPU does not wait for the number; the C++ kernels count the labels themselves."""

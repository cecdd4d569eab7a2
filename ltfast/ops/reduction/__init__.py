"""The reduction of the losses of the rows inside the Triton kernel that computes them, so that a step needs no launch
for it: the weight of a row in the mean over the labels that are not ignored, and the sum of the weighted losses. The
CPU never waits for the number of labels. The C++ kernels count and add by themselves.
"""

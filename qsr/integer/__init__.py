"""Networks on integers: the packed format, the reference, the kernels, packing, programs."""

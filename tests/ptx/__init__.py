"""An interpreter of nvcc's PTX: the CUDA kernels as compiled, on a machine without a GPU."""

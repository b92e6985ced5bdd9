// What the bindings of csrc/torch name of CUDA, when their kernels run in the interpreter of PTX.
#pragma once

using cudaStream_t = struct CUstream_st*;
enum cudaError : int { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
using cudaError_t = cudaError;

extern "C" const char* cudaGetErrorString(cudaError_t error);

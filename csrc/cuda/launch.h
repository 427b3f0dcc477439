// What the CUDA files have in common: one thread an output, and an error as text.
#pragma once
#include <cuda_runtime.h>

#include "cuda/core.h"
#include "cuda/imma.h"
#include "cuda/network.h"

namespace qsr {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;  // of a grid; the kernels stride over what exceeds it

// Blocks for `count` threads.
inline unsigned blocks_for(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

// The work of a thread: each output of [0, count) that falls to it.
#define QSR_FOR_EACH(index, count)                                                                 \
  for (int64_t index = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; index < count; \
       index += static_cast<int64_t>(gridDim.x) * blockDim.x)

// conv2d.cu, linear.cu, attention.cu: launch on `stream`. Jobs hold device pointers;
// counts are above 0.
cudaError_t conv2d_cuda(const Conv2d&, cudaStream_t stream);
cudaError_t linear_cuda(const Conv2d&, cudaStream_t stream);
cudaError_t attention_cuda(const CudaAttention&, cudaStream_t stream);
// imma.cu; for devices from 7.5 on.
cudaError_t imma_weights_cuda(const ImmaWeights&, cudaStream_t stream);
cudaError_t imma_cuda(const ImmaConv&, cudaStream_t stream);
cudaError_t imma_network_cuda(const ImmaNetwork&, cudaStream_t stream);

}  // namespace qsr

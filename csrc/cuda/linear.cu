// CUDA rung 0: rows times rows by counting bits, one thread an output value.
#include "cuda/launch.h"

namespace qsr {
namespace {

__global__ void linear_kernel(Conv2d job, int64_t count) {
  QSR_FOR_EACH(i, count) job.out[i] = linear_output(job, i);
}

}  // namespace

cudaError_t linear_cuda(const Conv2d& job, cudaStream_t stream) {
  const int64_t count = job.n * job.out_channels;
  linear_kernel<<<blocks_for(count), kThreads, 0, stream>>>(job, count);
  return cudaGetLastError();
}

}  // namespace qsr

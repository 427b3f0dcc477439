// CUDA rung 0: convolution by counting bits, one thread an output value. Neighbouring threads have
// neighbouring output channels: they read the same input planes, which one transaction serves.
#include "cuda/launch.h"

namespace qsr {
namespace {

__global__ void conv2d_kernel(Conv2d job, int64_t count) {
  QSR_FOR_EACH(i, count) job.out[i] = conv2d_output(job, i);
}

}  // namespace

cudaError_t conv2d_cuda(const Conv2d& job, cudaStream_t stream) {
  const int64_t count = job.n * job.out_h * job.out_w * job.out_channels;
  conv2d_kernel<<<blocks_for(count), kThreads, 0, stream>>>(job, count);
  return cudaGetLastError();
}

}  // namespace qsr

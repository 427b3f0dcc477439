// CUDA rung 0: window attention in three kernels, so that each thread writes one thing: a code of
// q, k or v; the probabilities of one query; one output value.
#include "cuda/launch.h"

namespace qsr {
namespace {

__global__ void codes_kernel(CudaAttention job, int64_t count) {
  QSR_FOR_EACH(i, count) attention_code(job, i);
}
__global__ void rows_kernel(CudaAttention job, int64_t count) {
  QSR_FOR_EACH(i, count) attention_row(job, i);
}
__global__ void outputs_kernel(CudaAttention job, int64_t count) {
  QSR_FOR_EACH(i, count) attention_output(job, i);
}

}  // namespace

cudaError_t attention_cuda(const CudaAttention& job, cudaStream_t stream) {
  const int64_t rows = job.windows * job.heads * job.pixels, outputs = rows * job.width;
  codes_kernel<<<blocks_for(3 * outputs), kThreads, 0, stream>>>(job, 3 * outputs);
  rows_kernel<<<blocks_for(rows), kThreads, 0, stream>>>(job, rows);
  outputs_kernel<<<blocks_for(outputs), kThreads, 0, stream>>>(job, outputs);
  return cudaGetLastError();
}

}  // namespace qsr

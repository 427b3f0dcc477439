// CUDA rung 1: the block of imma.h on the GPU, and the launches of layers and networks.
#include "cuda/launch.h"

namespace qsr {
namespace {

// Turing multiplies 8 channels by 16 summands at once, so there the instruction is four of those;
// registers lie the same way. Weights (A) are signed, codes (B) as the template says. volatile: all
// threads of a warp must come here together, so nothing may move it into a branch.
template <bool in_signed>
__device__ void mma(const Operands& o) {
#if __CUDA_ARCH__ >= 800
#define QSR_MMA(sign)                                                                 \
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8." sign                       \
               ".s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+r"(o.d[0]), "+r"(o.d[1]), "+r"(o.d[2]), "+r"(o.d[3])               \
               : "r"(o.a[0]), "r"(o.a[1]), "r"(o.a[2]), "r"(o.a[3]), "r"(o.b[0]), "r"(o.b[1]))
  if (in_signed)
    QSR_MMA("s8");
  else
    QSR_MMA("u8");
#elif __CUDA_ARCH__ >= 750
#define QSR_MMA(sign, half, k)                                 \
  asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8." sign \
               ".s32 {%0, %1}, {%2}, {%3}, {%0, %1};"          \
               : "+r"(o.d[2 * half]), "+r"(o.d[2 * half + 1])  \
               : "r"(o.a[half + 2 * k]), "r"(o.b[k]))
  QSR_UNROLL
  for (int i = 0; i < 4; ++i)
    if (in_signed)
      QSR_MMA("s8", (i / 2), (i % 2));
    else
      QSR_MMA("u8", (i / 2), (i % 2));
#else
  __trap();  // the launcher asks for 7.5
#endif
#undef QSR_MMA
}

template <bool in_signed>
struct Gpu {
  template <class T>
  struct PerThread {
    T value;
    __device__ T& operator[](int) { return value; }
  };
  template <class Use>
  __device__ void threads(const Use& use) {
    use(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  template <class Use>
  __device__ void warps(const Use& use) {
    use(static_cast<int>(threadIdx.x) / kLanes);
    __syncthreads();
  }
  template <class Use>
  __device__ void lanes(int, const Use& use) {
    use(static_cast<int>(threadIdx.x));
  }
  template <class At>
  __device__ void multiply(int, const At& at) {
    mma<in_signed>(at(static_cast<int>(threadIdx.x)));
  }
};

// Four blocks share a processor's 65,536 registers, 128 a thread; three where a thread needs more.
#if __CUDA_ARCH__ >= 800
#define QSR_BLOCKS 4
#else
#define QSR_BLOCKS 3
#endif

template <bool in_signed>
__global__ void __launch_bounds__(kBlockThreads, QSR_BLOCKS)
    imma_kernel(const __grid_constant__ ImmaConv job) {
  __shared__ alignas(16) uint8_t shared[kSharedBytes];
  Gpu<in_signed> gpu;
  for (int64_t block = blockIdx.x; block < job.blocks(); block += gridDim.x)
    imma_block(gpu, job, block, shared);
}

__global__ void weights_kernel(ImmaWeights job, int64_t count) {
  QSR_FOR_EACH(i, count) job.out[i] = weight_word(job, i);
}

__global__ void head_kernel(const __grid_constant__ ImmaHead job, int64_t count) {
  QSR_FOR_EACH(i, count) head_output(job, i);
}

}  // namespace

cudaError_t imma_weights_cuda(const ImmaWeights& job, cudaStream_t stream) {
  const int64_t count = (job.outputs + kOutputs - 1) / kOutputs * job.chunks * kWeightWords;
  weights_kernel<<<blocks_for(count), kThreads, 0, stream>>>(job, count);
  return cudaGetLastError();
}

cudaError_t imma_cuda(const ImmaConv& job, cudaStream_t stream) {
  const int64_t blocks = job.blocks();
  const auto grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
  if (job.in_signed)
    imma_kernel<true><<<grid, kBlockThreads, 0, stream>>>(job);
  else
    imma_kernel<false><<<grid, kBlockThreads, 0, stream>>>(job);
  return cudaGetLastError();
}

cudaError_t imma_network_cuda(const ImmaNetwork& net, cudaStream_t stream) {
  cudaError_t first = cudaSuccess;
  const auto keep = [&](cudaError_t error) { first = first == cudaSuccess ? error : first; };
  imma_network(
      net,
      [&](const ImmaHead& job) {
        const int64_t count = job.height * job.width * job.channels / 4;
        head_kernel<<<blocks_for(count), kThreads, 0, stream>>>(job, count);
        keep(cudaGetLastError());
      },
      [&](const ImmaConv& job) { keep(imma_cuda(job, stream)); });
  return first;
}

}  // namespace qsr

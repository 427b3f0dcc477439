// Runs on the host what each CUDA thread would compute (tests/test_cuda.py): of the first rung
// output by output, of the second block by block.
#include <algorithm>
#include <cstring>

#include "cuda/core.h"
#include "cuda/imma.h"
#include "cuda/network.h"

extern "C" void conv2d_on_host(const int64_t* sizes, const qsr::Word* a, const qsr::Word* w,
                               bool linear, int32_t* out) {
  qsr::Conv2d job{};
  int64_t* const fields[] = {&job.n,     &job.height,       &job.width,    &job.groups,
                             &job.words, &job.out_channels, &job.kernel_h, &job.kernel_w,
                             &job.out_h, &job.out_w,        &job.stride_h, &job.stride_w,
                             &job.pad_h, &job.pad_w};
  for (int64_t* field : fields) *field = *sizes++;
  job.a_bits = static_cast<int>(*sizes++), job.w_bits = static_cast<int>(*sizes++);
  job.a_signed = *sizes++, job.w_signed = *sizes++;
  job.a = a, job.w = w;
  for (int64_t i = 0; i < job.n * job.out_h * job.out_w * job.out_channels; ++i)
    out[i] = linear ? linear_output(job, i) : conv2d_output(job, i);
}

// ranges: step, low and high of q, k, probabilities and v. codes and probabilities: scratch.
extern "C" void attention_on_host(const int64_t* sizes, float query_scale, const float* ranges,
                                  const float* qkv, const float* bias, const float* mask,
                                  int16_t* codes, int16_t* probabilities, float* out) {
  qsr::CudaAttention job{};
  job.windows = sizes[0], job.pixels = sizes[1], job.heads = sizes[2], job.width = sizes[3];
  job.masks = sizes[4], job.query_scale = query_scale;
  job.qkv = qkv, job.bias = bias, job.mask = mask;
  for (qsr::CodeRange* range : {&job.q, &job.k, &job.p, &job.v})
    *range = {ranges[0], ranges[1], ranges[2]}, ranges += 3;
  job.codes = codes, job.probabilities = probabilities, job.out = out;
  const int64_t rows = job.windows * job.heads * job.pixels;
  for (int64_t i = 0; i < 3 * rows * job.width; ++i) attention_code(job, i);
  for (int64_t i = 0; i < rows; ++i) attention_row(job, i);
  for (int64_t i = 0; i < rows * job.width; ++i) attention_output(job, i);
}

namespace {

// A block of threads as plain loops (imma.h). Between two barriers it runs one warp after the
// other, forwards or backwards: a line that needs a barrier it has not got is wrong in one of the
// orders.
struct Emulated {
  bool in_signed, backwards;

  template <class T>
  struct PerThread {
    T values[qsr::kBlockThreads];
    T& operator[](int thread) { return values[thread]; }
  };
  template <class Use>
  void in_order(int count, const Use& use) {
    for (int i = 0; i < count; ++i) use(backwards ? count - 1 - i : i);
  }
  template <class Use>
  void threads(const Use& use) {
    in_order(qsr::kBlockThreads, use);
  }
  template <class Use>
  void warps(const Use& use) {
    in_order(qsr::kWarps, use);
  }
  template <class Use>
  void lanes(int warp, const Use& use) {
    in_order(qsr::kLanes, [&](int lane) { use(warp * qsr::kLanes + lane); });
  }

  // The instruction by its definition: gather the matrices, multiply, scatter. Sums wrap.
  template <class At>
  void multiply(int warp, const At& at) {
    int a[qsr::kM][qsr::kK], b[qsr::kK][qsr::kN];
    for (int lane = 0; lane < qsr::kLanes; ++lane) {
      const qsr::Operands o = at(warp * qsr::kLanes + lane);
      for (int i = 0; i < 16; ++i) {
        const qsr::Element place = qsr::a_place(lane, i / 4, i % 4);
        a[place.row][place.column] = static_cast<int8_t>(o.a[i / 4] >> (8 * (i % 4)));
      }
      for (int i = 0; i < 8; ++i) {
        const qsr::Element place = qsr::b_place(lane, i / 4, i % 4);
        const uint8_t byte = o.b[i / 4] >> (8 * (i % 4));
        b[place.row][place.column] = in_signed ? static_cast<int8_t>(byte) : byte;
      }
    }
    for (int lane = 0; lane < qsr::kLanes; ++lane)
      for (int i = 0; i < 4; ++i) {
        const qsr::Element place = qsr::d_place(lane, i);
        int sum = 0;
        for (int k = 0; k < qsr::kK; ++k) sum += a[place.row][k] * b[k][place.column];
        int32_t& d = at(warp * qsr::kLanes + lane).d[i];
        d = static_cast<int32_t>(static_cast<uint32_t>(d) + static_cast<uint32_t>(sum));
      }
  }
};

// Shared memory begins with what the block before left there; here with ones.
void run_blocks(const qsr::ImmaConv& job, bool backwards) {
  Emulated machine{job.in_signed, backwards};
  alignas(16) uint8_t shared[qsr::kSharedBytes];
  std::memset(shared, 0xff, sizeof shared);
  machine.in_order(static_cast<int>(job.blocks()),
                   [&](int block) { qsr::imma_block(machine, job, block, shared); });
}

void lay_out(const qsr::ImmaWeights& job) {
  const int64_t groups = (job.outputs + qsr::kOutputs - 1) / qsr::kOutputs;
  for (int64_t i = 0; i < groups * job.chunks * qsr::kWeightWords; ++i)
    job.out[i] = qsr::weight_word(job, i);
}

}  // namespace

// sizes: n, height, width, chunks, outputs, bits and sign of the codes, then of the weights.
// a, w: planes. laid_out: room for the weights.
extern "C" void imma_on_host(const int64_t* sizes, const qsr::Word* a, const qsr::Word* w,
                             bool backwards, uint32_t* laid_out, int32_t* out) {
  const int64_t outputs = sizes[4];
  lay_out({w, nullptr, outputs, sizes[3], static_cast<int>(sizes[7]), sizes[8] != 0, laid_out});
  qsr::ImmaConv job{};
  job.planes = a, job.weights = laid_out;
  job.n = sizes[0], job.height = sizes[1], job.width = sizes[2], job.chunks = sizes[3];
  job.out_channels = (outputs + qsr::kOutputs - 1) / qsr::kOutputs * qsr::kOutputs;
  job.in_bits = static_cast<int>(sizes[5]), job.in_signed = sizes[6];
  job.finish.sums = out, job.finish.sum_channels = outputs;
  run_blocks(job, backwards);
}

// where: for 32 lanes row and column of each byte of A (16), of B (8), of each number of D (4).
extern "C" void fragments(int32_t* where) {
  const auto put = [&](qsr::Element at) { *where++ = at.row, *where++ = at.column; };
  for (int lane = 0; lane < qsr::kLanes; ++lane) {
    for (int i = 0; i < 16; ++i) put(qsr::a_place(lane, i / 4, i % 4));
    for (int i = 0; i < 8; ++i) put(qsr::b_place(lane, i / 4, i % 4));
    for (int i = 0; i < 4; ++i) put(qsr::d_place(lane, i));
  }
}

// The address in shared memory from which each thread reads its codes: [9 taps, 4 parts, threads].
extern "C" void reads_of_codes(int32_t* addresses) {
  for (int tap = 0; tap < 9; ++tap)
    for (int p = 0; p < 4; ++p)
      for (int thread = 0; thread < qsr::kBlockThreads; ++thread)
        *addresses++ = qsr::code_place(thread, p, tap);
}

// codes: [outputs, 9, 64 * chunks].
extern "C" void lay_out_on_host(const int8_t* codes, int64_t outputs, int64_t chunks,
                                uint32_t* laid_out) {
  lay_out({nullptr, codes, outputs, chunks, 8, true, laid_out});
}

// The operator run_imma (csrc/torch/ops_cuda.cpp) as the GPU runs it. sizes: height, width, channels,
// layers, factors, steps, bytes of the workspace. Returns whether the steps hold.
extern "C" bool run_imma_on_host(const int64_t* sizes, const float* lr, const float* mean,
                                 float range, const float* head_weights, const float* head_bias,
                                 const uint8_t* weights, const float* arrays, const float* numbers,
                                 const qsr::ImmaStep* table, const float* factors, bool backwards,
                                 uint8_t* workspace) {
  const qsr::ImmaNetwork net{sizes[0], sizes[1],  sizes[2], lr,       mean,     range,    head_weights,
                             head_bias, weights,  arrays,   workspace, numbers, factors,  table,
                             sizes[3], sizes[4],  sizes[5], sizes[6]};
  if (!net.holds()) return false;
  qsr::imma_network(
      net,
      [&](const qsr::ImmaHead& job) {
        for (int64_t i = 0; i < job.height * job.width * job.channels / 4; ++i)
          qsr::head_output(job, i);
      },
      [&](const qsr::ImmaConv& job) { run_blocks(job, backwards); });
  return true;
}

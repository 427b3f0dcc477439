// What one CUDA thread computes, one function for each kernel, without a word of CUDA: the .cu
// files call these on the device, and the tests compile the same lines with the host's compiler and
// hold every output to qsr.reference. That is how the first rung is known to be right on a machine
// that has the toolkit but no GPU.
//
// This rung is the definition in parallel: one thread an output, no tiles, no shared memory. Float
// formulas are those of qsr/integer/reference.py; nvcc gets -fmad=false, so that a * b + c rounds
// twice.
#pragma once
#include <cmath>

#include "cpu.h"
#include "kernels.h"

#ifdef __CUDACC__
#define QSR_EACH __host__ __device__ inline
#else
#define QSR_EACH inline
#endif

namespace qsr {

#include "floats.h"

QSR_EACH int32_t common_bits(Word a, Word w) {
#ifdef __CUDA_ARCH__
  return __popcll(a & w);
#else
  return __builtin_popcountll(a & w);
#endif
}

// dot = sum_ij s_i s_j 2^(i+j) popcount(a_i & w_j) of codes in `words` words a plane.
QSR_EACH int32_t dot_planes(const Word* a, int a_bits, bool a_signed, const Word* w, int w_bits,
                            bool w_signed, int64_t words) {
  int32_t sum = 0;
  for (int i = 0; i < a_bits; ++i)
    for (int j = 0; j < w_bits; ++j) {
      int32_t common = 0;
      for (int64_t k = 0; k < words; ++k) common += common_bits(a[i * words + k], w[j * words + k]);
      sum += common * plane_weight(i, a_bits, a_signed) * plane_weight(j, w_bits, w_signed);
    }
  return sum;
}

// Output value `index` of [n, out_h, out_w, out_channels]. A pixel in the padding is code 0.
QSR_EACH int32_t conv2d_output(const Conv2d& job, int64_t index) {
  const int64_t o = index % job.out_channels, at = index / job.out_channels;
  const int64_t x = at % job.out_w, y = at / job.out_w % job.out_h, n = at / job.out_w / job.out_h;
  const int64_t group = o / (job.out_channels / job.groups);
  const Word* w = job.w + o * job.kernel_h * job.kernel_w * job.w_bits * job.words;
  int32_t sum = 0;
  for (int64_t dy = 0; dy < job.kernel_h; ++dy)
    for (int64_t dx = 0; dx < job.kernel_w; ++dx, w += job.w_bits * job.words) {
      const int64_t iy = y * job.stride_h + dy - job.pad_h, ix = x * job.stride_w + dx - job.pad_w;
      if (iy < 0 || iy >= job.height || ix < 0 || ix >= job.width) continue;
      const int64_t pixel = ((n * job.height + iy) * job.width + ix) * job.groups + group;
      sum += dot_planes(job.a + pixel * job.a_bits * job.words, job.a_bits, job.a_signed, w,
                        job.w_bits, job.w_signed, job.words);
    }
  return sum;
}

// The case of 1x1 pictures and kernels: rows times rows. Output `index` of [n, out_channels].
QSR_EACH int32_t linear_output(const Conv2d& job, int64_t index) {
  const int64_t row = index / job.out_channels, o = index % job.out_channels;
  return dot_planes(job.a + row * job.a_bits * job.words, job.a_bits, job.a_signed,
                    job.w + o * job.w_bits * job.words, job.w_bits, job.w_signed, job.words);
}

// Attention in three kernels: codes of q, k and v; codes of the probabilities; their
// product with v.
struct CodeRange {
  float step, low, high;
};
struct CudaAttention {
  const float* qkv;   // [windows, pixels, 3 * heads * width]
  const float* bias;  // [heads, pixels, pixels]
  const float* mask;  // [masks, pixels, pixels] or null
  int64_t windows, pixels, heads, width, masks;
  float query_scale;  // width^-1/2
  CodeRange q, k, p, v;
  int16_t* codes;          // [windows, pixels, 3 * heads * width]
  int16_t* probabilities;  // [windows, heads, pixels, pixels]
  float* out;              // [windows, pixels, heads * width]
};

QSR_EACH int16_t code_of(float x, CodeRange to) {
  const float z = rintf(x / to.step);
  return static_cast<int16_t>(z != z ? 0.0f : fminf(fmaxf(z, to.low), to.high));
}

// 2^t by a polynomial and the exponent's bits; 0 below -125. exp2 of qsr/integer/reference.py.
QSR_EACH float two_to(float t) {
  if (t < -125.0f) return 0.0f;
  const float n = (t + kMagic) - kMagic;
  return n != n ? n : exp2_fraction(t - n) * ldexpf(1.0f, static_cast<int>(n));
}

QSR_EACH void attention_code(const CudaAttention& job, int64_t index) {
  const int64_t part = index / (job.heads * job.width) % 3;
  const CodeRange to = part == 0 ? job.q : part == 1 ? job.k : job.v;
  job.codes[index] = code_of(part == 0 ? job.qkv[index] * job.query_scale : job.qkv[index], to);
}

QSR_EACH float attention_score(const CudaAttention& job, int64_t window, int64_t head, int64_t i,
                               int64_t j) {
  const int64_t features = job.heads * job.width;
  const int16_t* q = job.codes + (window * job.pixels + i) * 3 * features + head * job.width;
  const int16_t* k =
      job.codes + (window * job.pixels + j) * 3 * features + features + head * job.width;
  int32_t sum = 0;
  for (int64_t c = 0; c < job.width; ++c) sum += static_cast<int32_t>(q[c]) * k[c];
  const int64_t pair = i * job.pixels + j;
  const float score = static_cast<float>(sum) * (job.q.step * job.k.step) +
                      job.bias[head * job.pixels * job.pixels + pair];
  return job.mask ? score + job.mask[window % job.masks * job.pixels * job.pixels + pair] : score;
}

// Row `index` of [windows, heads, pixels]: the softmax of one query, as codes. Scores are computed
// three times rather than kept. The sum has 16 lanes, joined by halves.
QSR_EACH void attention_row(const CudaAttention& job, int64_t index) {
  const int64_t i = index % job.pixels, head = index / job.pixels % job.heads;
  const int64_t window = index / job.pixels / job.heads;
  float most = -INFINITY, lanes[16] = {};
  for (int64_t j = 0; j < job.pixels; ++j) {
    const float score = attention_score(job, window, head, i, j);
    if (score != score || score > most) most = score;  // a NaN stays: nothing is larger
  }
  const auto numerator = [&](int64_t j) {
    return two_to((attention_score(job, window, head, i, j) - most) * 1.4426950408889634f);
  };
  for (int64_t j = 0; j < job.pixels; ++j) lanes[j % 16] += numerator(j);
  for (int half = 8; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  const float inverse = 1.0f / (lanes[0] * job.p.step);
  for (int64_t j = 0; j < job.pixels; ++j)
    job.probabilities[index * job.pixels + j] =
        code_of(numerator(j) * inverse, {1.0f, job.p.low, job.p.high});
}

// Output `index` of [windows, pixels, heads, width].
QSR_EACH void attention_output(const CudaAttention& job, int64_t index) {
  const int64_t d = index % job.width, head = index / job.width % job.heads;
  const int64_t i = index / job.width / job.heads % job.pixels;
  const int64_t window = index / job.width / job.heads / job.pixels;
  const int64_t features = job.heads * job.width;
  const int16_t* p =
      job.probabilities + ((window * job.heads + head) * job.pixels + i) * job.pixels;
  const int16_t* v =
      job.codes + window * job.pixels * 3 * features + 2 * features + head * job.width + d;
  int32_t sum = 0;
  for (int64_t j = 0; j < job.pixels; ++j) sum += static_cast<int32_t>(p[j]) * v[j * 3 * features];
  job.out[index] = static_cast<float>(sum) * (job.p.step * job.v.step);
}

}  // namespace qsr

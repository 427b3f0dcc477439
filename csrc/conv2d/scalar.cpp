// Rung 0: convolution by counting bits, in portable C++.
//
//   dot(a, w) = sum_ij s_i s_j 2^(i+j) popcount(a_i & w_j)
//
// For one output pixel the taps that lie inside the picture are listed first; a tap in the padding
// is code 0 and contributes nothing, so it is simply not in the list. Then each output channel runs
// over the list, counts the common bits of every pair of planes, and weighs the counts at the end.
//
// The same code is compiled twice: "popcnt" uses the processor's instruction, "scalar" the
// compiler's substitute of shifts and masks, which runs anywhere.
//
// Bounds: the caller refuses jobs in which taps * 64 * words * max|code_a| * max|code_w| >= 2^31,
// so neither a count (<= taps * 64 * words) nor the weighted sum leaves int32.
#include <vector>

#include "cpu.h"
#include "kernels.h"

#if QSR_X86
#define QSR_TARGET_POPCNT __attribute__((target("popcnt")))
#else
#define QSR_TARGET_POPCNT
#endif

namespace qsr {
namespace {

struct Tap {
  const Word* a;   // planes of the input pixel under this tap: [groups, a_bits, words]
  int64_t weight;  // index of this tap's planes in one output channel's weights
};

// Taps of output pixel (n, y, x) that lie inside the picture; returns how many.
QSR_INLINE int64_t list_taps(const Conv2d& job, int64_t n, int64_t y, int64_t x, Tap* taps) {
  const int64_t pixel = job.groups * job.a_bits * job.words;
  int64_t count = 0;
  for (int64_t dy = 0; dy < job.kernel_h; ++dy) {
    const int64_t iy = y * job.stride_h + dy - job.pad_h;
    if (iy < 0 || iy >= job.height) continue;
    for (int64_t dx = 0; dx < job.kernel_w; ++dx) {
      const int64_t ix = x * job.stride_w + dx - job.pad_w;
      if (ix < 0 || ix >= job.width) continue;
      taps[count++] = {job.a + ((n * job.height + iy) * job.width + ix) * pixel,
                       (dy * job.kernel_w + dx) * job.w_bits * job.words};
    }
  }
  return count;
}

// One output value. A and W are the plane counts when known at compile time (the loops over planes
// unroll and the counts live in registers: 1.6 times as fast at 4 bits, 2.4 at 2), or 0.
template <int A, int W>
QSR_INLINE int32_t dot(const Conv2d& job, const Tap* taps, int64_t count, int64_t group_offset,
                       const Word* weights) {
  const int a_bits = A ? A : job.a_bits, w_bits = W ? W : job.w_bits;
  const int64_t words = job.words;
  int32_t common[A ? A : kMaxBits][W ? W : kMaxBits] = {};
  for (int64_t t = 0; t < count; ++t) {
    const Word* a = taps[t].a + group_offset;
    const Word* w = weights + taps[t].weight;
    for (int64_t k = 0; k < words; ++k)
      for (int i = 0; i < a_bits; ++i)
        for (int j = 0; j < w_bits; ++j)
          common[i][j] += __builtin_popcountll(a[i * words + k] & w[j * words + k]);
  }
  int32_t sum = 0;
  for (int i = 0; i < a_bits; ++i)
    for (int j = 0; j < w_bits; ++j)
      sum += common[i][j] * plane_weight(i, a_bits, job.a_signed) *
             plane_weight(j, w_bits, job.w_signed);
  return sum;
}

template <int A, int W>
QSR_INLINE void rows_of(const Conv2d& job, int64_t first, int64_t last) {
  const int64_t per_group = job.out_channels / job.groups;
  const int64_t filter = job.kernel_h * job.kernel_w * job.w_bits * job.words;
  std::vector<Tap> taps(job.kernel_h * job.kernel_w);
  for (int64_t row = first; row < last; ++row) {  // a row: one line of output pixels
    int32_t* out = job.out + row * job.out_w * job.out_channels;
    for (int64_t x = 0; x < job.out_w; ++x, out += job.out_channels) {
      const int64_t count = list_taps(job, row / job.out_h, row % job.out_h, x, taps.data());
      for (int64_t o = 0; o < job.out_channels; ++o)
        out[o] = dot<A, W>(job, taps.data(), count, o / per_group * job.a_bits * job.words,
                           job.w + o * filter);
    }
  }
}

QSR_INLINE void run(const Conv2d& job, int64_t first, int64_t last) {
  if (job.a_bits == 4 && job.w_bits == 4) return rows_of<4, 4>(job, first, last);
  if (job.a_bits == 3 && job.w_bits == 3) return rows_of<3, 3>(job, first, last);
  if (job.a_bits == 2 && job.w_bits == 2) return rows_of<2, 2>(job, first, last);
  rows_of<0, 0>(job, first, last);
}

}  // namespace

QSR_TARGET_POPCNT void conv2d_popcnt(const Conv2d& job, int64_t first, int64_t last) {
  run(job, first, last);
}

void conv2d_scalar(const Conv2d& job, int64_t first, int64_t last) { run(job, first, last); }

}  // namespace qsr

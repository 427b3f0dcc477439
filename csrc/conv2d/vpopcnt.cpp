// Rung 1: the same counting as scalar.cpp, for eight output channels at a time.
//
// AVX-512 with VPOPCNTDQ counts the bits of eight words in one instruction. So the weights are laid
// out with eight output channels side by side, a word of activations is broadcast to all eight, and
// each pair of planes costs one AND, one count and one add for 512 products of one bit. One thread
// of a Zen 5, 64 -> 64 channels 3x3, against conv2d_popcnt: 6.3 times at 4 bits (80 GMAC/s), 6.7 at
// 3, 5.9 at 2 (199 GMAC/s); `qsr bench kernel` prints these.
//
// Pairs of planes with the same weight 2^(i + j) share a sum, to which they are added or, if
// exactly one of the two is a top plane, subtracted: 7 registers at 4 bits. Bounds as in rung 0.
// This file uses no template of the standard library: compiled for AVX-512 here, it could be the
// copy that the linker keeps for everyone.
#include "cpu.h"
#include "kernels.h"

#if QSR_X86
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vpopcntdq")
#include <immintrin.h>

namespace qsr {
namespace {

constexpr int kLanes = 8;

// The planes of input pixel (n, y, x), or null in the padding.
inline const Word* pixel_at(const Conv2d& job, int64_t n, int64_t y, int64_t x) {
  if (y < 0 || y >= job.height || x < 0 || x >= job.width) return nullptr;
  return job.a + ((n * job.height + y) * job.width + x) * job.groups * job.a_bits * job.words;
}

// [Cout, taps, planes, words] -> [Cout / 8, taps, words, planes, 8], zeros beyond the last channel.
Word* lay_out(const Conv2d& job) {
  const int64_t taps = job.kernel_h * job.kernel_w, planes = job.w_bits, words = job.words;
  const int64_t blocks = (job.out_channels + kLanes - 1) / kLanes;
  Word* laid = new Word[blocks * taps * words * planes * kLanes]();
  for (int64_t o = 0; o < job.out_channels; ++o)
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t j = 0; j < planes; ++j)
        for (int64_t k = 0; k < words; ++k)
          laid[((((o / kLanes) * taps + t) * words + k) * planes + j) * kLanes + o % kLanes] =
              job.w[((o * taps + t) * planes + j) * words + k];
  return laid;
}

template <int A, int W, bool a_signed>
void rows_of(const Conv2d& job, int64_t first, int64_t last) {
  const int64_t per_group = job.out_channels / job.groups, words = job.words;
  const int64_t tap_size = words * W * kLanes, taps = job.kernel_h * job.kernel_w;
  const Word* laid = lay_out(job);
  for (int64_t row = first; row < last; ++row) {
    const int64_t n = row / job.out_h, y = row % job.out_h * job.stride_h - job.pad_h;
    for (int64_t column = 0; column < job.out_w; ++column) {
      const int64_t x = column * job.stride_w - job.pad_w;
      int32_t* out = job.out + (row * job.out_w + column) * job.out_channels;
      for (int64_t o = 0; o < job.out_channels; o += kLanes) {
        const int64_t group = o / per_group * A * words;
        const Word* w = laid + o / kLanes * taps * tap_size;
        __m512i sums[A + W - 1] = {};  // of the pairs of planes with weight 2^(i + j)
        for (int64_t t = 0; t < taps; ++t, w += tap_size) {
          const Word* a = pixel_at(job, n, y + t / job.kernel_w, x + t % job.kernel_w);
          if (!a) continue;  // the padding is code 0
          for (int64_t k = 0; k < words; ++k) {
#pragma GCC unroll 4
            for (int i = 0; i < A; ++i) {
              const __m512i plane =
                  _mm512_set1_epi64(static_cast<int64_t>(a[group + i * words + k]));
#pragma GCC unroll 4
              for (int j = 0; j < W; ++j) {
                const __m512i both =
                    _mm512_and_si512(plane, _mm512_loadu_si512(w + (k * W + j) * kLanes));
                const __m512i count = _mm512_popcnt_epi64(both);
                const bool minus = (a_signed && i == A - 1) != (j == W - 1);
                sums[i + j] = minus ? _mm512_sub_epi64(sums[i + j], count)
                                    : _mm512_add_epi64(sums[i + j], count);
              }
            }
          }
        }
        __m512i sum = sums[0];
#pragma GCC unroll 8
        for (int s = 1; s < A + W - 1; ++s)
          sum = _mm512_add_epi64(sum, _mm512_slli_epi64(sums[s], s));
        const int64_t left = job.out_channels - o;
        const __mmask8 valid = left >= kLanes ? 0xff : static_cast<__mmask8>((1 << left) - 1);
        _mm512_mask_cvtepi64_storeu_epi32(out + o, valid, sum);
      }
    }
  }
  delete[] laid;
}

template <int bits>
void with_sign(const Conv2d& job, int64_t first, int64_t last) {
  return job.a_signed ? rows_of<bits, bits, true>(job, first, last)
                      : rows_of<bits, bits, false>(job, first, last);
}

}  // namespace

// Eight channels lie in one group, and the widths are those at which this is the fastest rung that
// takes any kernel and stride: at 4 bits multiplying bytes is 1.6 times as fast.
bool takes_vpopcnt(const Conv2d& job) {
  return (job.groups == 1 || job.out_channels / job.groups % kLanes == 0) && job.w_signed &&
         job.a_bits == job.w_bits && (job.a_bits == 2 || job.a_bits == 3);
}

void conv2d_vpopcnt(const Conv2d& job, int64_t first, int64_t last) {
  if (job.a_bits == 3) return with_sign<3>(job, first, last);
  return with_sign<2>(job, first, last);
}

}  // namespace qsr
#pragma GCC pop_options

#else

namespace qsr {
void conv2d_vpopcnt(const Conv2d&, int64_t, int64_t) {}
bool takes_vpopcnt(const Conv2d&) { return false; }
}  // namespace qsr

#endif

// The 3x3 layer (conv3x3.h) on any processor: the definition, with eight output channels side by
// side in the compiler's own vectors. For codes of up to 8 bits.
//
// The sums over 64 input channels of one tap are kept in 16 bits where they fit: for up to 4 bits,
// 64 * 15 * 8 = 7,680. That was measured at 12 GMAC/s with SSE2 alone, and 32 bits at 2.
#include "cpu.h"
#include "network/conv3x3.h"

namespace qsr {
namespace {

#include "network/finish.h"

constexpr int kLanes = 8;
typedef Vector<4>::Int Int;
typedef int16_t Short __attribute__((vector_size(2 * kLanes), aligned(2)));

struct Sums {  // two vectors of 4, because vectors of 8 need more than SSE2 to be passed on
  Int low, high;
};

// Layout: s16 [out_channels / 8, 9, in_channels, 8].
int64_t laid_out_bytes(int64_t in, int64_t out) { return 2 * 9 * in * out; }

void lay_out(const int8_t* weights, int64_t in, int64_t out, bool, int, void* to) {
  int16_t* laid = static_cast<int16_t*>(to);
  for (int64_t o = 0; o < out; ++o)
    for (int64_t k = 0; k < 9 * in; ++k)
      laid[(o / kLanes * 9 * in + k) * kLanes + o % kLanes] = weights[o * 9 * in + k];
}

QSR_INLINE void widen(Sums& to, Short from) {
  to.low += Int{from[0], from[1], from[2], from[3]};
  to.high += Int{from[4], from[5], from[6], from[7]};
}

// chunk: how many products fit 16 bits.
template <int chunk>
Sums sums(const Conv3x3& job, int64_t y, int64_t x, int64_t o) {
  const int16_t* w = static_cast<const int16_t*>(job.weights) + o * 9 * job.in.channels;
  Sums total = {};
  for (int tap = 0; tap < 9; ++tap) {
    const uint8_t* a = job.in.at(y + tap / 3 - 1, x + tap % 3 - 1);
    for (int64_t c = 0; c < job.in.channels; c += chunk) {
      Short sum = {};
      for (int64_t k = c; k < c + chunk; ++k, w += kLanes) {
        const int code = job.in_signed ? static_cast<int8_t>(a[k]) : a[k];
        sum += static_cast<int16_t>(code) * *(const Short*)w;
      }
      widen(total, sum);
    }
  }
  return total;
}

void run(const Conv3x3& job, int64_t first, int64_t last) {
  const int64_t width = job.in.width, out = job.out_channels;
  const int64_t code_row = (whole_tiles(width) + 2) * out;
  for (int64_t y = 2 * first; y < 2 * last && y < job.in.height; ++y)
    for (int64_t x = 0; x < width; ++x)
      for (int64_t o = 0; o < out; o += kLanes) {
        const Sums both = job.in_bits <= 4 ? sums<64>(job, y, x, o) : sums<1>(job, y, x, o);
        for (int64_t part = 0; part < kLanes; part += 4) {
          const Int sum = part ? both.high : both.low;
          const int64_t code_at = (y + 1) * code_row + (x + 1) * out;
          with_finish<4>(job, o + part, 0, [&](const auto& finish, int64_t channels) {
            finish(sum, (y * width + x) * channels, code_at);
          });
        }
      }
}

}  // namespace

const Conv3x3Kernel kConv3x3Portable = {"portable", anywhere, 2, 8, laid_out_bytes, lay_out, run};

}  // namespace qsr

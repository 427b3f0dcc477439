// The convolution (conv.h) on any processor: the definition, with eight output channels side by side
// in the compiler's own vectors. For every shape, and codes of up to 8 bits.
//
// Sums over the input channels of one tap are kept in 16 bits as long as they fit: for up to 4 bits
// 256 of 15 * 8 do. That was measured at 12 GMAC/s with SSE2 alone, and 32 bits at 2.
#include "cpu.h"
#include "network/conv.h"

namespace qsr {

namespace {

#include "network/finish.h"

constexpr int kLanes = 8;
typedef Vector<4>::Int Int;
typedef int16_t Short __attribute__((vector_size(2 * kLanes), aligned(2)));

struct Sums {  // two vectors of 4, because vectors of 8 need more than SSE2 to be passed on
  Int low, high;
};

bool takes(const ConvShape&) { return true; }
int64_t scratch_bytes(const ConvShape&) { return 0; }

// Layout: s16 [filled out / 8, taps, channels of the span, 8].
int64_t laid_out_bytes(const ConvShape& s) {
  return 2 * s.taps() * Span(s, kLanes).length * filled(s.out, kMapLanes);
}

void lay_out(const int8_t* weights, const ConvShape& s, void* to) {
  int16_t* laid = static_cast<int16_t*>(to);
  const Span span(s, kLanes);
  for (int64_t o = 0; o < s.out; ++o) {
    for (int64_t tap = 0; tap < s.taps(); ++tap)
      for (int64_t c = 0; c < span.group_in; ++c) {
        const int64_t at = (o / kLanes * s.taps() + tap) * span.length + span.within(o) + c;
        laid[at * kLanes + o % kLanes] = weights[(o * s.taps() + tap) * span.group_in + c];
      }
  }
}

QSR_INLINE void widen(Sums& to, Short from) {
  to.low += Int{from[0], from[1], from[2], from[3]};
  to.high += Int{from[4], from[5], from[6], from[7]};
}

Sums sums(const Conv& job, const Span& span, int64_t chunk, int64_t y, int64_t x, int64_t o) {
  const ConvShape& s = job.shape;
  const int16_t* w = static_cast<const int16_t*>(job.weights) + o * s.taps() * span.length;
  Sums total = {};
  for (int64_t dy = 0; dy < s.kernel_h; ++dy)
    for (int64_t dx = 0; dx < s.kernel_w; ++dx) {
      const uint8_t* a = job.in.at(y * s.stride_h + dy * s.dilation_h - job.shape.pad_h,
                                   x * s.stride_w + dx * s.dilation_w - job.shape.pad_w) +
                         span.begin(o);
      for (int64_t c = 0; c < span.length; c += chunk) {
        Short sum = {};
        for (int64_t k = c; k < c + chunk && k < span.length; ++k, w += kLanes) {
          const int code = s.in_signed ? static_cast<int8_t>(a[k]) : a[k];
          sum += static_cast<int16_t>(code) * *(const Short*)w;
        }
        widen(total, sum);
      }
    }
  return total;
}

void run(const Conv& job, int64_t first, int64_t last, void*) {
  const Span span(job.shape, kLanes);
  const int64_t out = filled(job.shape.out, kMapLanes);
  // How many products fit 16 bits: one of 8 bits by 8 does, as 255 * 128 = 32,640.
  const int64_t chunk = 32767 / ((int64_t{1} << job.shape.in_bits) << (job.shape.weight_bits - 1));
  for (int64_t y = first; y < last && y < job.height; ++y)
    for (int64_t o = 0; o < out; o += kLanes)
      for (int64_t part = 0; part < kLanes; part += 4)
        with_finish<4>(job.finish, job.width, o + part, 0, [&](const auto& finish) {
          for (int64_t x = 0; x < job.width; ++x) {
            const Sums both = sums(job, span, chunk < 1 ? 1 : chunk, y, x, o);
            finish(part ? both.high : both.low, Spot{y, x, 0});
          }
        });
}

}  // namespace

const ConvKernel kConvPortable = {"portable",    anywhere, 1,   takes, laid_out_bytes,
                                  lay_out, scratch_bytes, run};

}  // namespace qsr

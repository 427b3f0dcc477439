// Float convolution whose result does not depend on anything but its operands.
//
// The head and the tail of a network stay in float32. A library convolution picks its algorithm,
// and with it the order of its sums, by the size of the picture: the last bits of a pixel then
// change when the same picture is cut into strips, and a last bit can tip a code or an 8-bit output
// over its rounding threshold. Here every output is the same chain of float32 operations,
//
//   sum = 0;  for dy, dx, c in order:  sum = sum + x[dy, dx, c] * w[dy, dx, c, o]
//   out = sum + bias
//
// each product and each sum rounded once (no fused multiply-add, see the flags), so strips,
// batches, threads and processors agree bit for bit. Only independent outputs are computed side by
// side.
//
// Tile: 6 pixels x 16 output channels. 6 accumulators of 16 floats fit the registers of AVX2 (12 of
// 16) and AVX-512 (6 of 32); one load of 16 weights serves 6 pixels. The 16 channels are a vector
// of the compiler's own, compiled for three instruction sets from this one source.
#include "cpu.h"
#include "kernels.h"

namespace qsr {
namespace {

#include "vectors.h"

constexpr int kPixels = 6;
typedef Vector<kFloatLanes>::Float Lanes;

// `pixels` (at most kPixels) neighbours in one row, 16 output channels from `o` on.
template <int pixels>
QSR_INLINE void tile(const FloatConv2d& job, const float* x, float* out, int64_t o) {
  const int64_t padded_w = job.width + job.kernel_w - 1;
  const int64_t lanes_out = job.out_channels_padded;
  Lanes sum[pixels] = {};
  for (int64_t dy = 0; dy < job.kernel_h; ++dy) {
    for (int64_t dx = 0; dx < job.kernel_w; ++dx) {
      const float* in = x + (dy * padded_w + dx) * job.channels;
      const float* w = job.w + (dy * job.kernel_w + dx) * job.channels * lanes_out + o;
      for (int64_t c = 0; c < job.channels; ++c, w += lanes_out) {
        const Lanes weight = *reinterpret_cast<const Lanes*>(w);
        for (int p = 0; p < pixels; ++p) sum[p] += in[p * job.channels + c] * weight;
      }
    }
  }
  const int64_t left = job.out_channels - o;
  const int64_t valid = left < kFloatLanes ? left : kFloatLanes;
  for (int p = 0; p < pixels; ++p)
    for (int64_t k = 0; k < valid; ++k)
      out[p * job.out_channels + o + k] = sum[p][k] + (job.bias ? job.bias[o + k] : 0.0f);
}

}  // namespace

QSR_CLONES void conv2d_float(const FloatConv2d& job, int64_t first, int64_t last) {
  const int64_t padded_w = job.width + job.kernel_w - 1, padded_h = job.height + job.kernel_h - 1;
  for (int64_t row = first; row < last; ++row) {  // a row: one line of output pixels
    const int64_t n = row / job.height, y = row % job.height;
    const float* x = job.x + (n * padded_h + y) * padded_w * job.channels;
    float* out = job.out + row * job.width * job.out_channels;
    for (int64_t o = 0; o < job.out_channels; o += kFloatLanes) {
      int64_t column = 0;
      for (; column + kPixels <= job.width; column += kPixels)
        tile<kPixels>(job, x + column * job.channels, out + column * job.out_channels, o);
      for (; column < job.width; ++column)
        tile<1>(job, x + column * job.channels, out + column * job.out_channels, o);
    }
  }
}

}  // namespace qsr

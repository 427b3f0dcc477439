// The convolution steps of networks (network/conv.h) as rows of the public convolution: planes in,
// sums out.
//
// A row of the table gets bit planes and lays its weights out at every call, so it is slower than
// the same kernel inside a network, which keeps bytes between layers and lays out once. It exists
// so that all kernels are held to the reference by the same tests.
#include <vector>

#include "conv2d/pack.h"
#include "kernels.h"
#include "network/conv.h"

namespace qsr {
namespace {

// Unsigned weights of b bits are signed ones of b + 1. The unused lanes of words are channels.
ConvShape shape_of(const Conv2d& job) {
  return {job.groups * job.words * kWordBits, job.out_channels, job.groups, job.kernel_h,
          job.kernel_w, job.stride_h, job.stride_w, 1, 1, job.pad_h, job.pad_w, job.a_bits,
          job.w_signed ? job.w_bits : job.w_bits + 1, job.a_signed};
}

bool takes(const Conv2d& job, const ConvKernel& kernel) {
  const ConvShape shape = shape_of(job);
  return kernel.supported() && shape.weight_bits <= kMaxBits && kernel.takes(shape);
}

// Output rows [first, last) of picture n, from a map of the rows that they read.
void strip(const Conv2d& job, const ConvKernel& kernel, const ConvShape& shape, const void* weights,
           int64_t n, int64_t first, int64_t last) {
  const int64_t top = first * job.stride_h;  // input row 0 of the map
  const int64_t height = (last - first - 1) * job.stride_h + job.kernel_h - job.pad_h;
  CodeMap map{nullptr, height, job.width, shape.in, shape.in,
              Frame::around(height, job.width, job.pad_h, job.pad_w)};
  std::vector<uint8_t> bytes(map.bytes());
  map.data = bytes.data();
  const int64_t pixel = job.groups * job.a_bits * job.words;
  for (int64_t y = -job.pad_h; y < height; ++y)
    if (y + top >= 0 && y + top < job.height)
      unpack_codes(job.a + (n * job.height + y + top) * job.width * pixel, map.at(y, 0), job.width,
                   shape.in, job.groups, job.a_bits, job.a_signed);
  Conv layer{shape, map, last - first, job.out_w, weights, {}};
  layer.finish.sums = job.out + (n * job.out_h + first) * job.out_w * job.out_channels;
  layer.finish.sum_channels = job.out_channels;
  run_strips(kernel, layer, 0, (last - first + kernel.rows - 1) / kernel.rows);
}

void run(const Conv2d& job, const ConvKernel& kernel, int64_t first, int64_t last) {
  const ConvShape shape = shape_of(job);
  const int64_t depth = job.words * kWordBits, count = job.out_channels * shape.taps();
  std::vector<int8_t> codes(count * depth);
  unpack_codes(job.w, reinterpret_cast<uint8_t*>(codes.data()), count, depth, 1, job.w_bits,
               job.w_signed);
  const Bytes weights(kernel.laid_out_bytes(shape));
  kernel.lay_out(codes.data(), shape, weights.data());
  while (first < last) {  // picture by picture
    const int64_t n = first / job.out_h, y = first % job.out_h;
    const int64_t end = y + last - first < job.out_h ? y + last - first : job.out_h;
    strip(job, kernel, shape, weights.data(), n, y, end);
    first += end - y;
  }
}

}  // namespace

#define QSR_ROW(name, kernel)                                                                 \
  bool takes_##name(const Conv2d& job) { return takes(job, kernel); }                         \
  void conv2d_##name(const Conv2d& job, int64_t first, int64_t last) { run(job, kernel, first, last); }
QSR_ROW(winograd_vnni, kConvWinogradVnni)
QSR_ROW(direct_vnni, kConvDirectVnni)
QSR_ROW(winograd_avx2, kConvWinogradAvx2)
QSR_ROW(direct_avx2, kConvDirectAvx2)
#undef QSR_ROW

}  // namespace qsr

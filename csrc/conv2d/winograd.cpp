// The fused 3x3 layers (conv3x3.h) as rows of the public convolution: planes in, sums out.
//
// A row of the table gets bit planes and lays its weights out at every call, so it is slower than
// the same kernel inside a program, which keeps bytes between layers and lays out once. It exists
// so that all kernels are held to the reference by the same tests, and for single layers.
#include <vector>

#include "network/conv3x3.h"
#include "kernels.h"
#include "conv2d/pack.h"

namespace qsr {
namespace {

int64_t filled_up(int64_t channels) {
  return (channels + kMapChannels - 1) / kMapChannels * kMapChannels;
}

bool fits(const Conv2d& job, const Conv3x3Kernel& kernel) {
  return job.kernel_h == 3 && job.kernel_w == 3 && job.stride_h == 1 && job.stride_w == 1 &&
         job.pad_h == 1 && job.pad_w == 1 && job.groups == 1 && job.w_signed &&
         job.a_bits <= kernel.max_bits && job.w_bits <= kernel.max_bits;
}

// Output rows [first, last) of picture n. The rows above and below are part of the frame.
void strip(const Conv2d& job, const Conv3x3Kernel& kernel, const void* weights, int64_t out,
           int64_t n, int64_t first, int64_t last) {
  const int64_t channels = job.words * kWordBits, pixel = job.a_bits * job.words;
  CodeMap map{nullptr, last - first, job.width, channels};
  std::vector<uint8_t> bytes(map.bytes());
  map.data = bytes.data();
  for (int64_t y = first - 1; y <= last; ++y)
    if (y >= 0 && y < job.height)
      unpack_codes(job.a + (n * job.height + y) * job.width * pixel, map.at(y - first, 0),
                   job.width, channels, 1, job.a_bits, job.a_signed);
  Conv3x3 layer{map, job.a_signed, job.a_bits, weights, out, {}};
  layer.finish.sums = job.out + (n * job.height + first) * job.width * job.out_channels;
  layer.finish.sum_channels = job.out_channels;
  kernel.run(layer, 0, (map.height + kernel.rows - 1) / kernel.rows);
}

void run(const Conv2d& job, const Conv3x3Kernel& kernel, int64_t first, int64_t last) {
  const int64_t channels = job.words * kWordBits, out = filled_up(job.out_channels);
  std::vector<int8_t> codes(out * 9 * channels);
  unpack_codes(job.w, reinterpret_cast<uint8_t*>(codes.data()), job.out_channels * 9, channels, 1,
               job.w_bits, true);
  std::vector<int32_t> weights(kernel.laid_out_bytes(channels, out) / 4);
  kernel.lay_out(codes.data(), channels, out, job.a_signed, job.a_bits, weights.data());
  while (first < last) {  // picture by picture
    const int64_t n = first / job.height, y = first % job.height;
    const int64_t end = y + last - first < job.height ? y + last - first : job.height;
    strip(job, kernel, weights.data(), out, n, y, end);
    first += end - y;
  }
}

}  // namespace

bool takes_winograd_vnni(const Conv2d& job) { return fits(job, kConv3x3Vnni); }
void conv2d_winograd_vnni(const Conv2d& job, int64_t first, int64_t last) {
  run(job, kConv3x3Vnni, first, last);
}

bool takes_winograd_avx2(const Conv2d& job) { return fits(job, kConv3x3Avx2); }
void conv2d_winograd_avx2(const Conv2d& job, int64_t first, int64_t last) {
  run(job, kConv3x3Avx2, first, last);
}

}  // namespace qsr

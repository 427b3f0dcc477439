// Direct rung: convolution by multiplying bytes, for any kernel, stride, padding and groups. One
// source for two instruction sets; a file includes this inside its own anonymous namespace after it
// has chosen its target and written
//
//     Int, kLanes                       a vector of int32 and how many it holds
//     kVectors, kPixels                 the tile of sums in registers: outputs / kLanes by pixels
//     Int dot(Int sum, int32_t four, const int8_t* weights)
//                                       sum[l] + four bytes u8 . weights[4 l .. 4 l + 3]
//
// What it teaches: data in the order in which they are read. Each row of input is unpacked to bytes
// once an output row; weights lie as [block of outputs][tap][channels / 4][outputs][4], so that the
// inner loop reads both straight on, and a tile of kPixels x kVectors sums stays in registers while
// four bytes of a pixel meet the weights of all its outputs.
//
// One factor must be unsigned, so signed activations are kept as code + 2^(bits-1), the padding too
// (that is its code 0), and 2^(bits-1) times the sum of an output's weights is taken off at the
// end. Sums are modulo 2^32; the final one fits (ops.cpp checks), so what happens between does not
// matter.

constexpr int64_t kBlock = kVectors * kLanes;

struct DirectWeights {
  std::vector<int8_t> laid;    // [groups, blocks, taps, depth / 4, kBlock, 4]
  std::vector<int32_t> start;  // [groups, blocks, kBlock]
  int64_t blocks, depth;

  DirectWeights(const Conv2d& job, int32_t offset) : depth(job.words * kWordBits) {
    const int64_t taps = job.kernel_h * job.kernel_w, outputs = job.out_channels / job.groups;
    std::vector<int8_t> codes(job.out_channels * taps * depth);
    unpack_codes(job.w, reinterpret_cast<uint8_t*>(codes.data()), job.out_channels * taps, depth, 1,
                 job.w_bits, job.w_signed);
    blocks = (outputs + kBlock - 1) / kBlock;
    laid.resize(job.groups * blocks * taps * depth * kBlock);
    start.resize(job.groups * blocks * kBlock);
    for (int64_t o = 0; o < job.out_channels; ++o) {
      const int64_t within = o % outputs, lane = within % kBlock;
      const int64_t block = o / outputs * blocks + within / kBlock;
      int32_t total = 0;
      for (int64_t i = 0; i < taps * depth; ++i) {
        const int8_t code = codes[o * taps * depth + i];
        laid[((block * taps * depth + i / 4 * 4) * kBlock) + lane * 4 + i % 4] = code;
        total += code;
      }
      start[block * kBlock + lane] = -offset * total;
    }
  }
};

// kPixels pixels x kBlock outputs. from: the first tap of each pixel; row: bytes between taps above
// each other, pixel: beside each other.
QSR_INLINE void direct_tile(const Conv2d& job, const uint8_t* const* from, int64_t row,
                            int64_t pixel, int64_t depth, const int8_t* weights,
                            const int32_t* start, int32_t (*sums)[kBlock]) {
  Int sum[kPixels][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kPixels; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = *(const Int*)(start + v * kLanes);
  for (int64_t dy = 0; dy < job.kernel_h; ++dy)
    for (int64_t dx = 0; dx < job.kernel_w; ++dx)
      for (int64_t c = 0; c < depth; c += 4, weights += 4 * kBlock)
#pragma GCC unroll 4
        for (int r = 0; r < kPixels; ++r) {
          int32_t four;
          std::memcpy(&four, from[r] + dy * row + dx * pixel + c, 4);
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v)
            sum[r][v] = dot(sum[r][v], four, weights + 4 * v * kLanes);
        }
#pragma GCC unroll 4
  for (int r = 0; r < kPixels; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) *(Int*)(sums[r] + v * kLanes) = sum[r][v];
}

void direct(const Conv2d& job, int64_t first, int64_t last) {
  const int32_t offset = job.a_signed ? 1 << (job.a_bits - 1) : 0;
  const DirectWeights weights(job, offset);
  const int64_t depth = weights.depth, taps = job.kernel_h * job.kernel_w;
  const int64_t pixel = job.groups * depth, outputs = job.out_channels / job.groups;
  const int64_t row = (job.width + 2 * job.pad_w) * pixel;
  std::vector<uint8_t> rows(job.kernel_h * row);
  for (int64_t i = first; i < last; ++i) {
    const int64_t n = i / job.out_h, y = i % job.out_h;
    for (int64_t dy = 0; dy < job.kernel_h; ++dy) {
      const int64_t iy = y * job.stride_h + dy - job.pad_h;
      uint8_t* to = rows.data() + dy * row;
      std::memset(to, offset, row);
      if (iy < 0 || iy >= job.height) continue;
      to += job.pad_w * pixel;
      unpack_codes(job.a + (n * job.height + iy) * job.width * job.groups * job.a_bits * job.words,
                   to, job.width, pixel, job.groups, job.a_bits, job.a_signed);
      for (int64_t k = 0; k < job.width * pixel; ++k) to[k] = static_cast<uint8_t>(to[k] + offset);
    }
    for (int64_t x = 0; x < job.out_w; x += kPixels)
      for (int64_t block = 0; block < job.groups * weights.blocks; ++block) {
        const int64_t group = block / weights.blocks, o = block % weights.blocks * kBlock;
        const uint8_t* from[kPixels];
        for (int64_t r = 0; r < kPixels; ++r) {
          const int64_t at = x + r < job.out_w ? x + r : job.out_w - 1;  // computed and not kept
          from[r] = rows.data() + at * job.stride_w * pixel + group * depth;
        }
        alignas(64) int32_t sums[kPixels][kBlock];
        direct_tile(job, from, row, pixel, depth,
                    weights.laid.data() + block * taps * depth * kBlock,
                    weights.start.data() + block * kBlock, sums);
        const int64_t kept = outputs - o < kBlock ? outputs - o : kBlock;
        for (int64_t r = 0; r < kPixels && x + r < job.out_w; ++r)
          std::memcpy(job.out + (i * job.out_w + x + r) * job.out_channels + group * outputs + o,
                      sums[r], kept * sizeof(int32_t));
      }
  }
}

// Direct rung: convolution by multiplying bytes, for any kernel, stride, dilation and groups. One
// source for two instruction sets; a file includes this inside its own anonymous namespace after
// finish.h, when it has chosen its target and written
//
//     Int, kLanes                       a vector of int32 and how many it holds
//     kMostVectors, kPixels[V]          the tile of sums in registers: V vectors of outputs by pixels
//     wide(shape)                       whether weights need two bytes
//     Int four<is_signed>(from)         four bytes u8 in every lane, of signed codes code + 128
//     Weights<is_wide>(from)            four weights s8 of each lane; dot(sum, four) is
//                                       sum[l] + four . weights of lane l
//
// What it teaches: data in the order in which they are read. Weights lie as [block of outputs][tap]
// [channels / 4][outputs][4], so that the inner loop reads both straight on, and a tile of sums stays
// in registers while four bytes of a pixel meet the weights of all its outputs.
//
// One factor must be unsigned, so signed codes are multiplied as code + 128, the frame's too, and 128
// times the sum of an output's weights is taken off at the start. Sums are modulo 2^32; the final one
// fits, so what happens between does not matter.

constexpr int kRows = 4;  // of a strip
constexpr int kRun = 48;  // pixels whose sums wait for their finish: 12 KB, in the first-level cache

// Blocks of outputs are as wide as registers allow, and of nearly one width: 5 vectors are 3 and 2.
// With groups a block must not be wider than one, or it would multiply what other groups take.
struct DirectLayout {
  int64_t vectors, block, taps, bytes_each;  // bytes of the weights of a vector
  Span span;
  explicit DirectLayout(const ConvShape& s)
      : vectors(filled(s.out, kMapLanes) / kLanes),
        block(widest(s)),
        taps(s.taps()),
        bytes_each(0),
        span(s, block * kLanes) {
    bytes_each = (wide(s) ? 2 : 1) * kLanes * taps * span.length;
  }
  static int64_t widest(const ConvShape& s) {
    int64_t v = kMostVectors;
    while (s.groups > 1 && v > 1 && s.out / s.groups % (v * kLanes)) --v;
    return v;
  }
  int64_t starts_bytes() const { return filled(vectors * kLanes * 4, 64); }
  int64_t bytes() const { return starts_bytes() + vectors * bytes_each; }
  int64_t width(int64_t v) const {  // of the block that begins at vector v
    const int64_t left = vectors - v, blocks = (left + block - 1) / block;
    return (left + blocks - 1) / blocks;
  }
};

int64_t laid_out_bytes(const ConvShape& s) { return DirectLayout(s).bytes(); }
int64_t scratch_bytes(const ConvShape&) { return 0; }

void lay_out(const int8_t* weights, const ConvShape& s, void* to) {
  const DirectLayout layout(s);
  const Span& span = layout.span;
  int32_t* starts = static_cast<int32_t*>(to);
  int8_t* laid = static_cast<int8_t*>(to) + layout.starts_bytes();
  const int64_t parts = wide(s) ? 2 : 1;
  for (int64_t v = 0, width; v < layout.vectors; v += width) {
    width = layout.width(v);
    int8_t* block = laid + v * layout.bytes_each;
    for (int64_t o = v * kLanes; o < (v + width) * kLanes && o < s.out; ++o) {
      const int8_t* from = weights + o * layout.taps * span.group_in;
      const int64_t lane = o - v * kLanes;
      int64_t total = 0;
      for (int64_t tap = 0; tap < layout.taps; ++tap)
        for (int64_t c = 0; c < span.group_in; ++c) {
          const int code = from[tap * span.group_in + c];
          const int64_t k = tap * span.length + span.within(o) + c;
          int8_t* at = block + (k / 4 * width + lane / kLanes) * parts * kLanes * 4 +
                       lane % kLanes * 4 + k % 4;
          if (parts == 1) {
            at[0] = static_cast<int8_t>(code);
          } else {  // 16 * high + low
            at[0] = static_cast<int8_t>(code & 15);
            at[kLanes * 4] = static_cast<int8_t>(code >> 4);
          }
          total += code;
        }
      starts[o] = s.in_signed ? static_cast<int32_t>(-128 * total) : 0;
    }
  }
}

// How many taps there are below and beside each other, and how many bytes lie between them and
// between pixels. Taps whose bytes follow each other are one that is deeper: loops of a few channels
// are slow (32 channels: 12 %).
struct Taps {
  int64_t below, beside, depth, row, tap, pixel;
  Taps(const Conv& job, int64_t channels)
      : below(job.shape.kernel_h),
        beside(job.shape.kernel_w),
        depth(channels),
        row(job.shape.dilation_h * job.in.row()),
        tap(job.shape.dilation_w * job.in.pitch),
        pixel(job.shape.stride_w * job.in.pitch) {
    if (tap == depth) depth *= beside, beside = 1;
  }
};

// V vectors of outputs of P pixels. from: the first tap of the first. Pixels are addressed from
// every third on, as third + {0, 1, 2} * pixel: gcc has no registers for a pointer to each.
template <int V, int P, bool is_signed, bool is_wide>
QSR_INLINE void direct_tile(const Taps& taps, const uint8_t* from, const int8_t* weights,
                            const int32_t* start, int32_t (*sums)[V][kLanes]) {
  constexpr int kPart = kLanes * 4 * (is_wide ? 2 : 1);
  Int sum[P][V];
#pragma GCC unroll 24
  for (int r = 0; r < P; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = *(const Int*)(start + v * kLanes);
  for (int64_t dy = 0; dy < taps.below; ++dy)
    for (int64_t dx = 0; dx < taps.beside; ++dx) {
      const uint8_t* third[(P + 2) / 3];
#pragma GCC unroll 8
      for (int i = 0; i < (P + 2) / 3; ++i)
        third[i] = from + dy * taps.row + dx * taps.tap + 3 * i * taps.pixel;
      const int8_t* const end = weights + taps.depth / 4 * V * kPart;
      for (; weights != end; weights += V * kPart) {
        Weights<is_wide> w[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) w[v] = Weights<is_wide>(weights + v * kPart);
#pragma GCC unroll 24
        for (int r = 0; r < P; ++r) {
          const Int codes = four<is_signed>(third[r / 3] + r % 3 * taps.pixel);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) sum[r][v] = w[v].dot(sum[r][v], codes);
        }
#pragma GCC unroll 8
        for (int i = 0; i < (P + 2) / 3; ++i) {
          third[i] += 4;
          asm("" : "+r"(third[i]));
        }
      }
    }
#pragma GCC unroll 24
  for (int r = 0; r < P; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) *(Int*)sums[r][v] = sum[r][v];
}

// A function of its own, so that gcc has registers for what happens at each pixel.
template <int V>
__attribute__((noinline)) void finish_run(const Conv& job, const int32_t (*sums)[V][kLanes],
                                          int64_t o, int v, int64_t y, int64_t x, int64_t count) {
  with_finish<kLanes>(job.finish, job.width, o, 0,
                      [&](const auto& finish) __attribute__((always_inline)) {
                        for (int64_t i = 0; i < count; ++i)
                          finish(*(const Int*)sums[i][v], Spot{y, x + i, 0});
                      });
}

template <int V, bool is_signed, bool is_wide>
__attribute__((noinline)) void direct_block(const Conv& job, const DirectLayout& layout,
                                            int64_t first, int64_t y) {
  constexpr int P = kPixels[V];
  const Taps taps(job, layout.span.length);
  const int64_t o = first * kLanes;
  const int32_t* start = static_cast<const int32_t*>(job.weights) + o;
  const int8_t* weights = static_cast<const int8_t*>(job.weights) + layout.starts_bytes() +
                          first * layout.bytes_each;
  const uint8_t* line = job.in.at(y * job.shape.stride_h - job.shape.pad_h, -job.shape.pad_w) + layout.span.begin(o);
  alignas(64) int32_t room[P + kRun][V][kLanes];  // a last tile may begin before the run
  const auto sums = room + P;
  for (int64_t x = 0; x < job.width; x += kRun) {
    const int64_t count = job.width - x < kRun ? job.width - x : kRun;
    const auto tile = [&](auto pixels, int64_t i) QSR_INLINED {
      direct_tile<V, decltype(pixels)::value, is_signed, is_wide>(
          taps, line + (x + i) * taps.pixel, weights, start, sums + i);
    };
    const std::integral_constant<int, P> whole;
    const std::integral_constant<int, 1> single;
    int64_t i = 0;
    for (; i + P <= count; i += P) tile(whole, i);
    if (i < count && x + count >= P)
      tile(whole, count - P);  // it ends with the run, and begins where it must, if before it
    else
      for (; i < count; ++i) tile(single, i);
    for (int v = 0; v < V; ++v)
      finish_run<V>(job, sums, o + v * kLanes, v, y, x, count);
  }
}

// Block by block, so that its weights are read once from beyond the caches for the rows of a strip.
template <bool is_signed, bool is_wide>
void direct_rows(const Conv& job, int64_t first, int64_t last) {
  const DirectLayout layout(job.shape);
  for (int64_t strip = first; strip < last; ++strip)
    for (int64_t v = 0, width; v < layout.vectors; v += width) {
      width = layout.width(v);
      for (int64_t y = kRows * strip; y < kRows * (strip + 1) && y < job.height; ++y) {
        if (width == 1) direct_block<1, is_signed, is_wide>(job, layout, v, y);
        if (width == 2) direct_block<2, is_signed, is_wide>(job, layout, v, y);
        if constexpr (kMostVectors > 2) {
          if (width == 3) direct_block<3, is_signed, is_wide>(job, layout, v, y);
          if (width == 4) direct_block<4, is_signed, is_wide>(job, layout, v, y);
        }
      }
    }
}

// The step that packed networks are made of: a convolution of byte codes and all that follows it up
// to the next layers' codes, in one pass over the picture:
//
//     sum   = codes conv weights                  integers, exact
//     y     = sum * scale + bias                  float32, each operation rounded once
//     y     = one operation after another         Op: relu, leaky, add, multiply ...
//     out   = y                                   a float map
//     codes = clamp(round((y + tau) / step))      for each reader: halves to even, NaN gives 0
//
// The channels of a map are filled up to a multiple of 16. The ones beyond the last have weights,
// scale, bias and tau 0, so their codes are 0 and need no special case.
#pragma once
#include <cstdint>
#include <cstring>
#include <new>
#include <string>

#include "cpu.h"

namespace qsr {

constexpr int64_t kMapLanes = 16;  // the channels of a map are a multiple of this
constexpr int64_t kMapTile = 4;    // tiles of kernels are 2x2 or 4x4 outputs

constexpr int64_t filled(int64_t length, int64_t unit) {
  return (length + unit - 1) / unit * unit;
}
constexpr int64_t whole_tiles(int64_t length) { return filled(length, kMapTile); }

// Pixels of code 0 around a picture.
struct Frame {
  int64_t top, left, bottom, right;

  // For readers that look `reach` pixels over the edge: on each side as many, and right and below
  // as many more as fill the last tile.
  static constexpr Frame around(int64_t height, int64_t width, int64_t reach_y, int64_t reach_x) {
    return {reach_y, reach_x, reach_y + whole_tiles(height) - height,
            reach_x + whole_tiles(width) - width};
  }
};

// The byte codes of one picture, u8 if unsigned, s8 if signed, in a frame of code 0. Several maps
// may lie beside each other in one buffer (a concatenation): then their pitch is that of all of
// them, and the data of each begin at its first channel.
struct CodeMap {
  uint8_t* data;  // [top + height + bottom, left + width + right, pitch]
  int64_t height, width, channels;
  int64_t pitch;  // bytes from a pixel to the next
  Frame frame;

  int64_t row() const { return (frame.left + width + frame.right) * pitch; }
  int64_t bytes() const { return (frame.top + height + frame.bottom) * row(); }
  int64_t offset(int64_t y, int64_t x) const {
    return (y + frame.top) * row() + (x + frame.left) * pitch;
  }
  uint8_t* at(int64_t y, int64_t x) const { return data + offset(y, x); }
};

// Numbers of one picture: (y, x, c) at y * row + x * pixel + c. Channels beyond the last are
// neither read nor written.
struct FloatMap {
  float* data;  // null: none
  int64_t row, pixel, channels;
};

// What can happen to y, element by element.
enum class Op : int {
  kRelu,      // y < 0 ? 0 : y
  kLeaky,     // y > 0 ? y : y * array[channel]
  kAdd,       // factor * map + y
  kMultiply,  // map * y
  kFactors,   // array[i] * y, one after another for all i < count
  kSigmoid,   // the formulas of qsr/integer/reference.py
  kGelu,
  kSilu,
  kTanh,
};

struct Operation {
  Op op;
  float factor;
  const float* array;
  int64_t count;
  FloatMap map;  // may be the one that is written
};

// The codes that a reader of y takes; tau: [channels of the map].
struct CodeStore {
  CodeMap map;
  const float* tau;
  float step, low, high;
};

constexpr int kMostOperations = 6, kMostCodes = 4;

// What becomes of the sums. scale and bias: [filled out channels].
struct Finish {
  int32_t* sums;         // if given, the sums themselves and nothing else:
  int64_t sum_channels;  // [height, width, sum_channels]

  const float* scale;
  const float* bias;
  int operation_count, code_count;
  Operation operations[kMostOperations];
  FloatMap out;
  CodeStore codes[kMostCodes];
};

// All that is known of a convolution before its picture. in, out: the channels that it has, which
// its maps fill up; groups divides both.
struct ConvShape {
  int64_t in, out, groups;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int64_t pad_h, pad_w;      // above and left; below and right follows from the size of a result
  int in_bits, weight_bits;  // weights are signed
  bool in_signed;

  int64_t taps() const { return kernel_h * kernel_w; }
  // What Winograd's tiles compute.
  bool is_3x3() const {
    return kernel_h == 3 && kernel_w == 3 && stride_h == 1 && stride_w == 1 && dilation_h == 1 &&
           dilation_w == 1 && pad_h == 1 && pad_w == 1 && groups == 1;
  }
};

// A 3x3 layer inside a network: as many outputs as inputs, of equal bits, the picture keeps its size.
constexpr ConvShape shape_3x3(int64_t channels, int bits, bool is_signed) {
  return {channels, channels, 1, 3, 3, 1, 1, 1, 1, 1, 1, bits, bits, is_signed};
}

// The input channels that `block` outputs together take, counted from a multiple of it: a range of
// one length for all blocks, in fours. Where it reaches over a group, the weights of the others'
// channels are 0: so any number of groups, up to one channel each, is no special case.
struct Span {
  int64_t block, length, group_in, group_out, all;
  Span(const ConvShape& s, int64_t block)
      : block(block),
        length(0),
        group_in(s.in / s.groups),
        group_out(s.out / s.groups),
        all(filled(s.in, 4)) {
    if (s.groups == 1) length = all;
    for (int64_t o = 0; o < s.out && s.groups > 1; o += block) {
      const int64_t last = (o + block < s.out ? o + block : s.out) - 1;
      const int64_t wide = filled((last / group_out + 1) * group_in, 4) - first(o);
      length = wide > length ? wide : length;
    }
  }
  int64_t first(int64_t o) const { return o / block * block / group_out * group_in / 4 * 4; }
  int64_t begin(int64_t o) const {  // of the block in which output o is
    return first(o) + length > all ? all - length : first(o);
  }
  // Where the channels of its own group begin within the span of output o.
  int64_t within(int64_t o) const { return o / group_out * group_in - begin(o); }
};

struct Conv {
  ConvShape shape;
  CodeMap in;             // its frame is at least the padding, in whole tiles
  int64_t height, width;  // of the result
  const void* weights;    // laid out by the row that runs, for this shape
  Finish finish;
};

// A row of the table. Work is counted in strips of `rows` rows of the result: run computes the rows
// [rows * first, rows * last), of those that there are.
struct ConvKernel : Row {
  int rows;
  bool (*takes)(const ConvShape&);
  int64_t (*laid_out_bytes)(const ConvShape&);
  // weights: codes [out, kernel_h, kernel_w, in / groups]; laid_out: zeros, aligned to 64 bytes
  void (*lay_out)(const int8_t* weights, const ConvShape&, void* laid_out);
  int64_t (*scratch_bytes)(const ConvShape&);  // that each call of run needs, aligned to 64 bytes
  void (*run)(const Conv&, int64_t first, int64_t last, void* scratch);
};

// conv_winograd_vnni.cpp and conv_winograd_avx2.cpp, by conv_winograd.h; conv_direct_vnni.cpp and
// conv_direct_avx2.cpp, by conv_direct.h; conv_portable.cpp
extern const ConvKernel kConvWinogradVnni, kConvDirectVnni, kConvWinogradAvx2, kConvDirectAvx2,
    kConvPortable;

// Zeros, aligned to 64 bytes.
class Bytes {
 public:
  explicit Bytes(int64_t count)
      : data_(::operator new(static_cast<size_t>(count) + 1, std::align_val_t{64})) {
    std::memset(data_, 0, static_cast<size_t>(count));
  }
  ~Bytes() { ::operator delete(data_, std::align_val_t{64}); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

// run, with scratch of its own.
inline void run_strips(const ConvKernel& kernel, const Conv& job, int64_t first, int64_t last) {
  const Bytes scratch(kernel.scratch_bytes(job.shape));
  kernel.run(job, first, last, scratch.data());
}

// dispatch.cpp: the first supported row of that name ("auto": any) that takes it; null if none.
const ConvKernel* find_conv(const char* name, const ConvShape& shape);
// Comma-separated names of the supported rows that take it, best first.
std::string conv_names(const ConvShape& shape);

}  // namespace qsr

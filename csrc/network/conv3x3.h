// The layer that a packed network is made of: a 3x3 convolution of byte codes, stride 1, zero
// padding, and all that follows it up to the next layer's codes, in one pass over a tile:
//
//     sum   = codes conv weights                                  integers, exact
//     y     = sum * scale + bias                                  float32, each operation
//     y     = max(y, 0)                        conv1 of a block   rounded once
//     y     = shortcut * residual + y          conv2 of a block
//     y     = skip * y                         for each block skipped after it
//     codes = clamp(round((y + tau) / step))   of the next layer: halves to even, NaN gives 0
//
// Inside a network the channels of a feature map are filled up to a multiple of 64. The ones beyond
// the last have weights, scale, bias and tau 0, so they stay 0 everywhere and need no special case.
#pragma once
#include <cstdint>
#include <string>

#include "cpu.h"

namespace qsr {

constexpr int64_t kMapChannels = 64;  // the channels of a map are a multiple of this
constexpr int64_t kMapTile = 4;       // tiles of kernels are 2x2 or 4x4 outputs

constexpr int64_t whole_tiles(int64_t length) {
  return (length + kMapTile - 1) / kMapTile * kMapTile;
}

// The byte codes of one picture, u8 if unsigned, s8 if signed, in a frame of code 0: one pixel on
// each side, and right and below as many more as fill the last tile.
struct CodeMap {
  uint8_t* data;  // [whole_tiles(height) + 2, whole_tiles(width) + 2, channels]
  int64_t height, width, channels;

  int64_t row() const { return (whole_tiles(width) + 2) * channels; }  // bytes
  int64_t bytes() const { return (whole_tiles(height) + 2) * row(); }
  uint8_t* at(int64_t y, int64_t x) const { return data + (y + 1) * row() + (x + 1) * channels; }
};

// What becomes of the sums. Float maps are [height, width, channels]; arrays are [channels].
struct Finish {
  int32_t* sums;         // if given, the sums themselves and nothing else:
  int64_t sum_channels;  // [height, width, sum_channels]

  const float* scale;
  const float* bias;
  bool relu;              // only without a residual
  const float* residual;  // null: none; then no shortcut, no skips and no float result either
  float shortcut;
  const float* skips;
  int64_t skip_count;
  float* out;  // y, or null; may be `residual`

  CodeMap codes;  // data null: none
  const float* tau;
  float step, low, high;
};

struct Conv3x3 {
  CodeMap in;
  bool in_signed;
  int in_bits;
  const void* weights;   // laid out by the row that runs, for these bits and this sign
  int64_t out_channels;  // a multiple of 64
  Finish finish;
};

// A row of the table. Work is counted in strips of `rows` picture rows: run computes the rows
// [rows * first, rows * last), of those that the picture has.
struct Conv3x3Kernel : Row {
  int rows;      // 2 or 4
  int max_bits;  // of activations and weights; weights are signed
  int64_t (*laid_out_bytes)(int64_t in_channels, int64_t out_channels);
  // weights: codes [out_channels, 3, 3, in_channels]; laid_out: zeros, aligned to 4 bytes
  void (*lay_out)(const int8_t* weights, int64_t in_channels, int64_t out_channels, bool in_signed,
                  int in_bits, void* laid_out);
  void (*run)(const Conv3x3&, int64_t first, int64_t last);
};

// conv3x3_vnni.cpp and conv3x3_avx2.cpp, by conv3x3_driver.h; conv3x3_portable.cpp
extern const Conv3x3Kernel kConv3x3Vnni, kConv3x3Avx2, kConv3x3Portable;

// dispatch.cpp: the first supported row of that name ("auto": any) for these bits; null if none.
const Conv3x3Kernel* find_conv3x3(const char* name, int bits);
// Comma-separated names of the supported rows for these bits, best first.
std::string conv3x3_names(int bits);

}  // namespace qsr

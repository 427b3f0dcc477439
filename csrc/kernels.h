// What kernels see: pointers and sizes, never torch. Each struct is one job; a kernel computes a
// range of its rows, so that any thread pool can split the work and the result cannot depend on
// how.
#pragma once
#include <cstdint>
#include <string>

#include "cpu.h"
#include "format.h"

namespace qsr {

// Integer convolution of packed codes; a linear layer is the case of 1x1 pictures and kernels.
struct Conv2d {
  const Word* a;  // [n, height, width, groups, a_bits, words]
  const Word* w;  // [out_channels, kernel_h, kernel_w, 1, w_bits, words]
  int32_t* out;   // [n, out_h, out_w, out_channels]
  int64_t n, height, width, groups, words;
  int64_t out_channels, kernel_h, kernel_w;
  int64_t out_h, out_w, stride_h, stride_w, pad_h, pad_w;
  int a_bits, w_bits;
  bool a_signed, w_signed;
};

// Quantisation and packing in one pass: float32 of any strides -> planes.
struct QuantizePack {
  const float* x;  // (n, c, y, x) at n * stride_n + c * stride_c + y * stride_y + x * stride_x
  int64_t stride_n, stride_c, stride_y, stride_x;
  const float* tau;  // [channels] or null
  float step_size;
  Word* out;  // [n, height, width, groups, bits, words]
  int64_t n, height, width, channels, groups, words;
  int bits;
  bool is_signed;
};

// Float convolution, stride 1, in one fixed order of summation. Padding is already in x.
constexpr int kFloatLanes = 16;  // output channels of weights and tiles come in this many
struct FloatConv2d {
  const float* x;     // [n, height + kernel_h - 1, width + kernel_w - 1, channels]
  const float* w;     // [kernel_h, kernel_w, channels, out_channels_padded], zeros in the padding
  const float* bias;  // [out_channels] or null
  float* out;         // [n, height, width, out_channels]
  int64_t n, height, width, channels, out_channels, out_channels_padded, kernel_h, kernel_w;
};

// A row of a table of dispatch.cpp: run computes the rows of output [first, last) of a job that the
// row takes. The last row of a table takes all jobs.
template <class Job>
struct Kernel : Row {
  bool (*takes)(const Job&);
  void (*run)(const Job&, int64_t first, int64_t last);
};

// conv2d/: bytes.cpp (of network/conv.h), table.cpp, vpopcnt.cpp
void conv2d_winograd_vnni(const Conv2d&, int64_t first, int64_t last);
bool takes_winograd_vnni(const Conv2d&);
void conv2d_winograd_avx2(const Conv2d&, int64_t first, int64_t last);
bool takes_winograd_avx2(const Conv2d&);
void conv2d_direct_vnni(const Conv2d&, int64_t first, int64_t last);
bool takes_direct_vnni(const Conv2d&);
void conv2d_direct_avx2(const Conv2d&, int64_t first, int64_t last);
bool takes_direct_avx2(const Conv2d&);
void conv2d_table(const Conv2d&, int64_t first, int64_t last);
bool takes_table(const Conv2d&);
void conv2d_vpopcnt(const Conv2d&, int64_t first, int64_t last);
bool takes_vpopcnt(const Conv2d&);
// conv2d/: scalar.cpp, quantize_pack.cpp
void conv2d_popcnt(const Conv2d&, int64_t first, int64_t last);
void conv2d_scalar(const Conv2d&, int64_t first, int64_t last);
void quantize_pack_scalar(const QuantizePack&, int64_t first, int64_t last);

// conv2d/float.cpp; compiled for several instruction sets, all of them giving the same bits
void conv2d_float(const FloatConv2d&, int64_t first, int64_t last);

// bench/ceiling.cpp: multiply-accumulates a second of one core by instruction; "clock" in Hz, 0 for
// an unknown or unsupported name. Names are comma-separated.
double peak(const char* name, double seconds);
std::string peak_names();

// conv2d/pack.cpp: `count` pixels of `channels` bytes <-> planes.
void pack_codes(const uint8_t* codes, Word* out, int64_t count, int64_t channels, int64_t groups,
                int bits);
void unpack_codes(const Word* words, uint8_t* codes, int64_t count, int64_t channels,
                  int64_t groups, int bits, bool is_signed);

// dispatch.cpp: THE tables, best first. find: the row called `name`, if this processor runs it and
// it takes the job; for "auto" the first such row; null if there is none. names: of all such rows,
// comma-separated.
const Kernel<Conv2d>* find_conv2d(const char* name, const Conv2d& job);
std::string conv2d_names(const Conv2d& job);
const Kernel<QuantizePack>* find_quantize_pack(const char* name, const QuantizePack& job);
// Comma-separated names of the rows of an op that this processor runs, best first: "conv2d",
// "conv3x3", "attention", "tail", "swin_step", "quantize_pack" or "conv2d_float"; of another op
// none. bits: what conv3x3 (activations or weights) and attention (two factors together) must take;
// the rows of other ops decide job by job.
std::string available(const char* op, int bits);

}  // namespace qsr

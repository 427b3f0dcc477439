// Swin transformer layers of QuantSR-T on byte codes. A layer is attention inside windows and then
// a network for each token, so everything between one reading of the float stream and its writing
// happens inside one window: kernels take windows one at a time, with all that lies between (codes,
// scores, hidden values) in scratch memory that fits the second-level cache. Shifted windows are
// only another way to count pixels.
//
// All float formulas are those of qsr/integer/reference.py, bit for bit.
#pragma once
#include <cstdint>
#include <string>

#include "cpu.h"

namespace qsr {

constexpr int64_t kRowLanes = 16;  // partial sums of a row; LANES of qsr/integer/reference.py

// code = clamp(round((x + tau) / step), low, high), kept in a byte as code + offset.
struct ByteCodes {
  float step, low, high;
  int32_t offset;
};

// A packed linear layer, rows of u8 codes times s8 weights. Sizes are filled up to multiples of 64
// with zeros, so the unused outputs stay 0.
struct ByteLinear {
  int64_t in, out;
  const int8_t* weights;      // [out / 16, in / 4, 16, 4]
  const int32_t* start;       // [out]: -offset of the input times the sum of the weights
  const float *scale, *bias;  // [out]
  const float* tau;           // [in]
  ByteCodes codes;            // of the input
};

struct Norm {
  const float *weight, *bias;  // [channels], filled up with zeros
  float eps;
};

// Attention inside one window. `pixels` is filled up to `padded`, a multiple of 16, where the bias
// of a pair is -1e30, so that its exp is 0.
struct WindowAttention {
  int64_t pixels, padded, heads, width;
  bool quantised;
  float query_scale;     // width^-1/2
  ByteCodes q, k, p, v;  // q, p: u8 = code + offset; k, v: s8 = code + offset (-128 or 0)
  float qk_scale, pv_scale;
  const float* bias;  // [heads, pixels, padded]
};

struct SwinLayer {
  float* stream;  // [height, width, channels], changed in place
  int64_t height, width, channels, features;
  int64_t window, shift;  // height and width are multiples of window
  Norm norm1, norm2;
  ByteLinear qkv, proj, fc1, fc2;
  WindowAttention attention;
};

// The operator: float32 q, k, v in, float32 out.
struct AttentionRows {
  const float* qkv;   // [windows, pixels, 3 * features]
  const float* mask;  // [masks, pixels, pixels] or null
  float* out;         // [windows, pixels, features]
  int64_t windows, masks;
  WindowAttention attention;
};

// LayerNorm of whole rows: out [rows, channels], zeros beyond `features`.
struct NormRows {
  const float* x;
  float* out;
  int64_t channels, features;
  Norm norm;
};

// A row of the table; each function computes windows (or rows) [first, last).
struct SwinKernel : Row {
  int max_bits;  // of the two factors of a product together
  void (*layer)(const SwinLayer&, int64_t first, int64_t last);
  void (*attention)(const AttentionRows&, int64_t first, int64_t last);
  void (*norm)(const NormRows&, int64_t first, int64_t last);
};

// swin_vnni.cpp, swin_avx2.cpp, swin_portable.cpp
extern const SwinKernel kSwinVnni, kSwinAvx2, kSwinPortable;

// dispatch.cpp: the first supported row of that name ("auto": any); null if none.
const SwinKernel* find_swin(const char* name, int bits);
std::string swin_names(int bits);

}  // namespace qsr

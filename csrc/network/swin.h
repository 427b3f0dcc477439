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

constexpr int64_t kSwinChannels = 64;  // maps and linear layers are filled up to whole ones
constexpr int64_t kRowLanes = 16;  // partial sums of a row; LANES of qsr/integer/reference.py

// code = clamp(round((x + tau) / step), low, high), kept in a byte as code + offset.
struct ByteCodes {
  float step, low, high;
  int32_t offset;
};

// How many bits codes have, and whether they are signed.
struct CodeKind {
  int64_t bits;
  bool is_signed;
};

// The left factor of a product, kept as u8, or the right one, as s8.
inline ByteCodes byte_codes(float step, CodeKind kind, bool left) {
  const int64_t half = int64_t{1} << (kind.bits - 1);
  const int64_t offset =
      left ? (kind.is_signed ? half : 0) : (!kind.is_signed && kind.bits == 8 ? -128 : 0);
  return {step, static_cast<float>(kind.is_signed ? -half : 0),
          static_cast<float>(kind.is_signed ? half - 1 : 2 * half - 1),
          static_cast<int32_t>(offset)};
}

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

// Has it multiply codes. steps, kinds: of q, k, probabilities and v. Returns the most bits that two
// factors have together.
inline int64_t quantise(WindowAttention& a, const float* steps, const CodeKind (&kinds)[4]) {
  ByteCodes* const codes[4] = {&a.q, &a.k, &a.p, &a.v};
  int64_t most = 0;
  for (int i = 0; i < 4; ++i) {
    const bool left = i % 2 == 0;
    *codes[i] = byte_codes(steps[i], kinds[i], left);
    const int64_t as_signed = kinds[i].bits + (kinds[i].is_signed || kinds[i].bits == 8 ? 0 : 1);
    const int64_t together = left ? 0 : kinds[i - 1].bits + as_signed;
    most = together > most ? together : most;
  }
  a.quantised = true, a.qk_scale = steps[0] * steps[1], a.pv_scale = steps[2] * steps[3];
  return most;
}

struct SwinLayer {
  const float* from;  // [height, width, channels]; may be `stream`
  float* stream;      // the same, of the result
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

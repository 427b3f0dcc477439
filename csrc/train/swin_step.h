// What a Swin layer learns with, beside its linear layers: attention inside windows, LayerNorm and
// GELU, forward and backward in one pass each. Numbers are float32 or bfloat16 (`half`).
#pragma once
#include <cstdint>
#include <string>

#include "cpu.h"

namespace qsr {

constexpr int64_t kTokenGroup = 32;  // pixels of a window are filled up to a multiple of it

// Attention inside windows of a picture whose pixels lie in their ordinary order: cutting into
// windows, and shifting them, is a way to count pixels and no copy. T = window^2 pixels see each
// other, `padded` is T filled up. With a shift, pixels that the cyclic shift brought together from
// opposite edges do not (`shift_mask` of qsr/blocks.py).
struct TrainAttention {
  int64_t pictures, height, width;  // height and width are multiples of window
  int64_t heads, depth, window, shift;
  int64_t pixels, padded;
  bool half;           // qkv, out, g and dqkv are bfloat16
  bool half_products;  // multiply in bfloat16, where the processor has such instructions
  const void* qkv;     // [pictures, height, width, 3, heads, depth]
  const float* bias;   // [heads, pixels (keys), padded (queries)], times log2(e)
  float* softmax;      // [windows, heads, 2, padded]: each query's largest exponent of 2, 1 / sum;
                       // forward writes what backward reads
  void* out;           // forward: [pictures, height, width, heads, depth]
  const void* g;       // backward: dL/dout
  void* dqkv;          // backward: as qkv
  float* dbias;        // backward: [chunks, heads, pixels, padded], zeros when it begins

  // Work is counted in chunks of windows. They are fixed, so that no sum depends on threads.
  int64_t windows, chunk, chunks;
};

// LayerNorm of each row.
struct TrainNorm {
  int64_t rows, channels;
  bool half;                   // x, y, g and dx are bfloat16
  const void* x;               // [rows, channels]
  const float *weight, *bias;  // [channels]
  float eps;
  float* moments;  // [rows, 2]: mean and 1 / deviation; forward writes what backward reads
  void* y;         // forward
  const void* g;   // backward: dL/dy
  void* dx;        // backward
  float* sums;     // backward: [chunks, 2, padded]: of g x^ and g, zeros when it begins
  int64_t padded, chunk, chunks;  // `padded` are channels filled up to a multiple of 16
};

// GELU of each number.
struct TrainGelu {
  int64_t count, chunk, chunks;
  bool half;      // x, y and g are bfloat16
  const void* x;  // [count]
  const void* g;  // backward: dL/dy
  void* y;        // forward: y, backward: dL/dx
};

// A row of the table in dispatch.cpp; each function computes chunks [first, last).
struct SwinStepKernel : Row {
  void (*attention)(const TrainAttention&, int64_t first, int64_t last);
  void (*attention_backward)(const TrainAttention&, int64_t first, int64_t last);
  void (*norm)(const TrainNorm&, int64_t first, int64_t last);
  void (*norm_backward)(const TrainNorm&, int64_t first, int64_t last);
  void (*gelu)(const TrainGelu&, int64_t first, int64_t last);
  void (*gelu_backward)(const TrainGelu&, int64_t first, int64_t last);
};

// swin_step_bf16.cpp, _avx2.cpp, _portable.cpp: one source, swin_step_kernel.h
extern const SwinStepKernel kSwinStepBf16, kSwinStepAvx2, kSwinStepPortable;

// dispatch.cpp: the supported row of that name, or null; all such names
const SwinStepKernel* find_swin_step(const char* name);
std::string swin_step_names();

}  // namespace qsr

// The collapsed tail (qsr/integer/tail.py): features -> sr, one 5x5 convolution and a pixel
// shuffle, in float.
#pragma once
#include <cstdint>

#include "cpu.h"

namespace qsr {

constexpr int kTailRows = 4;  // work is counted in strips of 4 lr rows
constexpr int kTailClasses = 4;

struct Tail {
  int64_t height, width, channels;  // channels: a multiple of 16
  int64_t scale, outputs;           // outputs: 3 scale^2, filled up to a multiple of 16
  const float* features;            // [height, width, channels]
  const float* inside;              // [8, 8, channels, outputs], transformed weights
  const float* ring;                // [4, 4, 5, 5, channels, outputs]: by class of row and column
  const float* biases;              // [4, 4, outputs]
  float* sr;                        // [3, scale * height, scale * width]
};

struct TailKernel : Row {
  void (*run)(const Tail&, int64_t first, int64_t last);  // strips [first, last)
};

// tail_avx512.cpp, tail_avx2.cpp, tail_portable.cpp: one source, tail_kernel.h
extern const TailKernel kTailAvx512, kTailAvx2, kTailPortable;

// dispatch.cpp: the supported row of that name, or null
const TailKernel* find_tail(const char* name);

}  // namespace qsr

// The ways into the maps of convolutions (conv.h) and out of them: codes of numbers that lie pixel by
// pixel or plane by plane, and planes of numbers.
#pragma once
#include "network/conv.h"

namespace qsr {

// Writes code 0 around the rows [first, last) of a picture: left and right of them, above the first
// row of the picture and below its last.
void zero_frame(const CodeMap& map, int64_t first, int64_t last);

// A row of the table; all work on the rows [first, last) of a picture of `width`.
struct MapsKernel : Row {
  // The codes of x. The frame is not touched.
  void (*quantize)(const FloatMap& x, const CodeStore& to, int64_t first, int64_t last);
  // The same of planes: of channels c < `channels`, pixel (y, i) is x[c * plane + y * width + i].
  void (*quantize_planes)(const float* x, int64_t plane, int64_t channels, const CodeStore& to,
                          int64_t first, int64_t last);
  // `count` pixels of x, [count, channels], to planes: channel c of pixel i at to[c * plane + i].
  void (*to_planes)(const float* x, int64_t channels, int64_t count, float* to, int64_t plane);
  // What becomes of numbers that are no sums: the same as of the sums of a convolution.
  void (*finish)(const FloatMap& x, const Finish&, int64_t width, int64_t channels, int64_t first,
                 int64_t last);
  // A function of single numbers, of an array.
  void (*element)(Op, const float* x, float* y, int64_t count);
};

// maps_avx512.cpp, maps_avx2.cpp and maps_portable.cpp, by maps_kernel.h
extern const MapsKernel kMapsAvx512, kMapsAvx2, kMapsPortable;
// dispatch.cpp: the best that this processor runs, the one of the instructions of a convolution, and
// the one of a name ("auto": the best), or null
const MapsKernel& maps_kernel();
const MapsKernel& maps_beside(const ConvKernel&);
const MapsKernel* find_maps(const char* name);

}  // namespace qsr

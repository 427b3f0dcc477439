// A plan (qsr/integer/plan.py) for one picture size, as tables of numbers, and its execution.
//
// The executor knows no network. A step reads a map, makes lanes of it and stores what they become
// (conv.h); it is split into bands of rows, and all of them end before the next step begins.
//
// numbers, int64, one after another (kernel, stride ... are pairs, of rows and of columns):
//
//     how many values, how many steps
//     a value    kind (0 codes, 1 float), home (0 workspace, 1 input, 2 output), place (offset in
//                bytes, or which input or output), height, width, channels, frame, bits, signed
//     a step     op, source, out (-1: none), height, width, channels; of a
//         convolution       first input channel, how many, groups, kernel, stride, dilation, padding, bits of the
//                           weights, where they begin (bytes), where scale and bias begin
//         norm              channels that are used, where weight, bias and eps begin
//         swin              see `swin` of executor.cpp, and qsr/integer/packed_swin.py
//         bilinear          whether corners are aligned
//         average           kernel (0: all), stride, padding, whether padding counts
//         pool              kernel, stride, padding
//         nearest, shuffle  factor
//         convolution of floats
//                           kernel, padding, where weights [kernel, in, lanes] begin, and where
//                           bias does
//         pad               above, below, left, right, whether edges are reflected
//                then how many operations, (operation, value or -1, where its numbers begin) each,
//                of factors how many for a value;
//                then how many stores, (value, first channel) each, and but for a move where tau
//                begins, and where step, lowest and highest code do
//
// constants, float32: what begins somewhere above. Arrays are filled up to whole vectors of lanes.
//
// Nothing of this is trusted: the constructor reads it through checks, and throws what becomes a
// ValueError. After that no step can leave the memory that it was lent, whatever the numbers say.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels.h"
#include "network/conv.h"
#include "network/swin.h"

namespace qsr {

template <class T>
struct Room {
  T* data;
  int64_t count;
};

struct Tables {
  Room<const int64_t> numbers;
  Room<const float> constants;
  Room<const uint8_t> weights;  // aligned to 64 bytes, as the workspace
  Room<uint8_t> workspace;
  std::vector<Room<float>> inputs, outputs;  // channels last
};

// Runs work(first, last) over parts of [0, count), each about `cost` operations a unit.
using Bands = std::function<void(int64_t count, double cost,
                                 const std::function<void(int64_t, int64_t)>& work)>;

// One of the functions of single numbers that finishes have: "sigmoid" ...
Op element(const std::string& name);

class Executor {
 public:
  // kernel, swin: names of rows of conv.h and of swin.h, or "auto".
  Executor(const Tables& tables, const std::string& kernel, const std::string& swin);
  int64_t steps() const { return static_cast<int64_t>(steps_.size()); }
  void run(int64_t step, const Bands& bands) const;

 private:
  enum Op : int64_t {
    kConv,
    kFloat,
    kFloatConv,
    kNorm,
    kSwin,
    kBilinear,
    kAverage,
    kPool,
    kNearest,
    kShuffle,
    kPad
  };

  struct Value {
    bool is_float, is_signed;
    int64_t height, width, channels;
    int bits;
    CodeMap codes;
    FloatMap floats;
  };

  struct Step {
    int64_t op, height, width, channels;
    int64_t kernel[2], stride[2], padding[2], factor;
    bool option;  // aligned corners, padding that counts, or reflected edges
    const Value* source;
    CodeMap to;  // of a move
    Conv conv;   // and the finish of other steps
    FloatConv2d float_conv;
    NormRows norm;
    SwinLayer swin;
    const SwinKernel* swin_row;  // of the norm or the layer
    FloatMap floats;             // where its finish begins, unless it begins with a row of sums
    const ConvKernel* row;
    double cost;                 // of a row of the result
    std::vector<CodeMap> begun;  // maps that this step is the first to write: it makes their frames
  };

  class Reader;
  void resampled(const Step&, int64_t y, float* scratch, float* row) const;
  static bool finishes(const Step&);
  void finish(const Step&, int64_t first, int64_t last) const;
  void band(const Step&, int64_t first, int64_t last) const;

  std::vector<Value> values_;
  std::vector<Step> steps_;
};

}  // namespace qsr

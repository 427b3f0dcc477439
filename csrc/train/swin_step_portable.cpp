// Swin layers for training on any processor, in the compiler's own vectors of 4.
#include "cpu.h"
#include "train/swin_step.h"

#include <new>

namespace qsr {
namespace {

#include "vectors.h"

constexpr int kLanes = 4, kSums = 8;
typedef Vector<kLanes>::Float Lanes;
QSR_INLINE Lanes fma(Lanes a, Lanes b, Lanes c) { return a * b + c; }
QSR_INLINE Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

#include "train/numbers.h"
#include "train/swin_step_kernel.h"

}  // namespace

const SwinStepKernel kSwinStepPortable = {"portable", anywhere,      attention, attention_backward,
                                          norm,       norm_backward, gelu,      gelu_backward};

}  // namespace qsr

// The collapsed tail on any processor, in the compiler's own vectors of 4.
#include "cpu.h"
#include "network/tail.h"

namespace qsr {
namespace {

#include "vectors.h"

constexpr int kLanes = 4, kTiles = 2;
typedef Vector<kLanes>::Float Lanes;
QSR_INLINE Lanes fma(float a, Lanes b, Lanes c) { return a * b + c; }

#include "network/tail_kernel.h"

}  // namespace

const TailKernel kTailPortable = {"portable", anywhere, run};

}  // namespace qsr

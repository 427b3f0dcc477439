// The collapsed tail on any processor, in the compiler's own vectors of 4.
#include "network/tail.h"

namespace qsr {
namespace {

#define QSR_INLINE __attribute__((always_inline)) inline

constexpr int kLanes = 4, kTiles = 2;
typedef float Four __attribute__((vector_size(16), aligned(4)));
QSR_INLINE Four fma(float a, Four b, Four c) { return a * b + c; }
#include "network/tail_kernel.h"

bool anywhere() { return true; }

}  // namespace

const TailKernel kTailPortable = {"portable", anywhere, run};

}  // namespace qsr

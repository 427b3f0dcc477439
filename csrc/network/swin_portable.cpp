// Swin layers on any processor: the definition, in the compiler's own vectors. Exact for all bytes.
#include "cpu.h"
#include "network/swin.h"

#include <cmath>
#include <cstring>
#include <new>

#include "network/conv.h"

namespace qsr {
namespace {

#include "network/finish.h"

#define QSR_PART 4
typedef Vector<QSR_PART>::Int IntPart;
typedef Vector<QSR_PART>::Float FloatPart;
typedef Vector<QSR_PART>::Byte BytePart;

QSR_INLINE FloatPart larger(FloatPart a, FloatPart b) { return a > b ? a : b; }
QSR_INLINE FloatPart smaller(FloatPart a, FloatPart b) { return a < b ? a : b; }

typedef int16_t Short __attribute__((vector_size(16)));
typedef uint16_t Unsigned __attribute__((vector_size(16)));

QSR_INLINE IntPart halves(Short pairs) {
  const IntPart x = (IntPart)pairs;
  return (x << 16 >> 16) + (x >> 16);
}

// A product u8 x s8 fits 16 bits, so the even and the odd bytes of 16-bit lanes are multiplied
// there: few machines without vectors of bytes lack that multiplication. 3 times the speed of
// single numbers.
QSR_INLINE IntPart dot(IntPart sum, const uint8_t* four, const int8_t* weights) {
  int32_t bytes;
  std::memcpy(&bytes, four, 4);
  const Unsigned a = (Unsigned)(IntPart{} + bytes);
  const Short w = (Short)(*(const IntPart*)weights);
  return sum + halves((Short)(a << 8 >> 8) * (w << 8 >> 8)) + halves((Short)(a >> 8) * (w >> 8));
}

#include "network/wide.h"

constexpr int kVectors = 1, kSideBySide = 1;
#include "network/swin_kernel.h"

}  // namespace

const SwinKernel kSwinPortable = {"portable", anywhere, 16, layer, attention, norm};

}  // namespace qsr

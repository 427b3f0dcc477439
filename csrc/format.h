// The packed format (docs/packed-format.md) as C++ sees it; mirrors qsr/integer/bitplanes.py.
#pragma once
#include <cstdint>

namespace qsr {

constexpr int kFormatVersion = 1;
constexpr int kWordBits = 64;
constexpr int kMaxBits = 8;
using Word = uint64_t;
static_assert(sizeof(Word) * 8 == kWordBits);

// Words that hold one plane of `channels` codes.
constexpr int64_t words_for(int64_t channels) { return (channels + kWordBits - 1) / kWordBits; }

// Weight of plane i: 2^i, and -2^(bits-1) for the top plane of signed codes.
constexpr int32_t plane_weight(int i, int bits, bool is_signed) {
  return is_signed && i == bits - 1 ? -(1 << i) : (1 << i);
}

}  // namespace qsr

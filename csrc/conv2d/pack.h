// Bit b of 64 bytes, gathered into one word.
#pragma once
#include <cstring>

#include "format.h"

namespace qsr {

// Eight bytes at a time: mask out bit b of each byte, then one multiplication moves the eight bits,
// which lie 8 apart, into the top byte (byte i is wanted at bit 56 + i; it lies at 8 i, so the
// factor has the bits 56 - 7 i, and no two partial products meet: no carries).
inline Word plane_of(const uint8_t (&lanes)[kWordBits], int b) {
  Word plane = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t bytes = 0;  // byte 0 lowest, on machines of either byte order
    for (int k = 0; k < 8; ++k) bytes |= static_cast<uint64_t>(lanes[8 * i + k]) << (8 * k);
    const uint64_t bits = bytes >> b & 0x0101010101010101u;
    plane |= bits * 0x0102040810204080u >> 56 << (8 * i);
  }
  return plane;
}

}  // namespace qsr

// Codes (one byte each) <-> bit planes.
#include "conv2d/pack.h"

#include <cstring>

#include "kernels.h"

namespace qsr {

void pack_codes(const uint8_t* codes, Word* out, int64_t count, int64_t channels, int64_t groups,
                int bits) {
  const int64_t per_group = channels / groups, words = words_for(per_group);
  for (int64_t i = 0; i < count * groups; ++i, codes += per_group, out += bits * words) {
    for (int64_t k = 0; k < words; ++k) {
      uint8_t lanes[kWordBits] = {};  // tail lanes stay code 0
      const int64_t first = k * kWordBits;
      const int64_t filled = per_group - first < kWordBits ? per_group - first : kWordBits;
      std::memcpy(lanes, codes + first, filled);
      for (int b = 0; b < bits; ++b) out[b * words + k] = plane_of(lanes, b);
    }
  }
}

namespace {

// Bit i of the index in byte i, for every byte: eight codes of one plane at a time.
struct SpreadTable {
  uint8_t bytes[256][8];
  constexpr SpreadTable() : bytes() {
    for (int value = 0; value < 256; ++value)
      for (int i = 0; i < 8; ++i) bytes[value][i] = value >> i & 1;
  }
};
constexpr SpreadTable kSpread;

}  // namespace

// A byte of a plane becomes eight bytes of 0 or 1 by a table, times the weight of the plane modulo
// 256. No sum of planes leaves a byte: the top plane of signed codes adds 256 - 2^(bits-1), the
// others less than 2^(bits-1).
void unpack_codes(const Word* words_in, uint8_t* codes, int64_t count, int64_t channels,
                  int64_t groups, int bits, bool is_signed) {
  const int64_t per_group = channels / groups, words = words_for(per_group);
  for (int64_t i = 0; i < count * groups; ++i, codes += per_group, words_in += bits * words) {
    for (int64_t c = 0; c < per_group; c += 8) {
      uint64_t eight = 0;
      for (int b = 0; b < bits; ++b) {
        const Word bits_of_eight = words_in[b * words + c / kWordBits] >> (c % kWordBits) & 0xff;
        uint64_t spread;
        std::memcpy(&spread, kSpread.bytes[bits_of_eight], 8);
        eight += spread * (plane_weight(b, bits, is_signed) & 0xff);
      }
      std::memcpy(codes + c, &eight, per_group - c < 8 ? per_group - c : 8);
    }
  }
}

}  // namespace qsr

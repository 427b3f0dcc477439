// Codes (one byte each) <-> bit planes.
#include "pack.h"

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

void unpack_codes(const Word* words_in, uint8_t* codes, int64_t count, int64_t channels,
                  int64_t groups, int bits, bool is_signed) {
  const int64_t per_group = channels / groups, words = words_for(per_group);
  for (int64_t i = 0; i < count * groups; ++i, codes += per_group, words_in += bits * words) {
    for (int64_t c = 0; c < per_group; ++c) {
      int32_t code = 0;
      for (int b = 0; b < bits; ++b) {
        const Word bit = words_in[b * words + c / kWordBits] >> (c % kWordBits) & 1;
        code += static_cast<int32_t>(bit) * plane_weight(b, bits, is_signed);
      }
      codes[c] = static_cast<uint8_t>(code);
    }
  }
}

}  // namespace qsr

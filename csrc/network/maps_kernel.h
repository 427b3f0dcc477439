// The ways in and out of maps (maps.h): one source for every instruction set. A file includes this
// inside its own anonymous namespace after finish.h, when it has chosen its target.
//
// Planes are read and written in squares of 16 channels x 16 pixels, turned by four rounds of
// interleaving: after each, what lay 8 rows apart lies side by side.

// The file has written kLanes, of a register of numbers: 8 or 16; and kFinishLanes, of a register of
// this processor: 4, 8 or 16. (With 16 lanes on AVX2 a sigmoid takes ten times as long.)

constexpr int kSide = 16;
typedef Vector<kLanes>::Float Float;

template <class Numbers>
QSR_INLINE void turn(Numbers (&square)[kSide]) {
  for (int round = 0; round < 4; ++round) {
    Numbers turned[kSide];
#pragma GCC unroll 8
    for (int i = 0; i < kSide / 2; ++i) {
      const Numbers a = square[i], b = square[i + kSide / 2];
      turned[2 * i] =
          __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      turned[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29,
                                                  14, 30, 15, 31);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSide; ++i) square[i] = turned[i];
  }
}

void quantize(const FloatMap& x, const CodeStore& to, int64_t first, int64_t last) {
  for (int64_t y = first; y < last; ++y)
    for (int64_t c = 0; c < to.map.channels; c += kLanes) {
      const Lanes<kLanes, true> from(x, c);
      const Coder<kLanes> coder(to, c);
      for (int64_t i = 0; i < to.map.width; ++i) coder(from.load({y, i, 0}), {y, i, 0});
    }
}

// A square of codes. whole: all of it is there; then it stays in registers, which takes half the time
// (64 channels, 128x128: 0.10 ms for 0.19).
template <bool whole>
QSR_INLINE void code_square(const float* from, int64_t plane, const float* tau, const CodeStore& to,
                            int64_t channels, int64_t pixels, uint8_t* at) {
  const Float step = Float{} + to.step, low = Float{} + to.low, high = Float{} + to.high;
  Vector<kSide>::Byte square[kSide] = {};
#pragma GCC unroll 16
  for (int64_t k = 0; k < kSide; ++k)
    if (whole || k < channels)
      for (int64_t part = 0; part < kSide && (whole || part < pixels); part += kLanes) {
        const float* numbers = from + k * plane + part;
        const Float v = load_some<kLanes>(numbers, whole ? kLanes : pixels - part);
        const auto bytes = code_bytes<kLanes>((v + tau[k]) / step, low, high);
        __builtin_memcpy(reinterpret_cast<uint8_t*>(square + k) + part, &bytes, kLanes);
      }
  turn(square);
#pragma GCC unroll 16
  for (int64_t k = 0; k < kSide; ++k)
    if (whole || k < pixels) *(Vector<kSide>::Byte*)(at + k * to.map.pitch) = square[k];
}

void quantize_planes(const float* x, int64_t plane, int64_t channels, const CodeStore& to,
                     int64_t first, int64_t last) {
  const int64_t width = to.map.width;
  for (int64_t c = 0; c < to.map.channels; c += kSide)
    for (int64_t y = first; y < last; ++y)
      for (int64_t i = 0; i < width; i += kSide) {
        const float* from = x + c * plane + y * width + i;
        uint8_t* at = to.map.at(y, i) + c;
        if (channels - c >= kSide && width - i >= kSide)
          code_square<true>(from, plane, to.tau + c, to, kSide, kSide, at);
        else
          code_square<false>(from, plane, to.tau + c, to, channels - c, width - i, at);
      }
}

// The same of numbers, from pixels to planes; `turned`: planes of the square's own.
template <bool whole>
QSR_INLINE void number_square(const float* from, int64_t channels, int64_t pixels, int64_t stride,
                              float* turned, int64_t plane) {
  Vector<kSide>::Float square[kSide] = {};
#pragma GCC unroll 16
  for (int64_t k = 0; k < kSide; ++k)
    if (whole || k < pixels)
      square[k] = load_some<kSide>(from + k * stride, whole ? kSide : channels);
  turn(square);
#pragma GCC unroll 16
  for (int64_t k = 0; k < kSide; ++k) *(Vector<kSide>::Float*)(turned + k * plane) = square[k];
}

void to_planes(const float* x, int64_t channels, int64_t count, float* to, int64_t plane) {
  // Pieces of 4 KB of each plane go out by memcpy, which does not fetch what it overwrites (64
  // channels, 128x128, not in the cache: 0.28 ms, square by square 0.44; in registers 0.20). Not kRun apart: that is one set of the cache.
  constexpr int64_t kRun = 1024, kApart = kRun + kSide;
  alignas(64) float turned[kSide * kApart];
  for (int64_t first = 0; first < count; first += kRun)
    for (int64_t c = 0; c < channels; c += kSide) {
      const int64_t pixels = std::min(kRun, count - first);
      for (int64_t i = 0; i < pixels; i += kSide) {
        const float* from = x + (first + i) * channels + c;
        if (channels - c >= kSide && pixels - i >= kSide)
          number_square<true>(from, kSide, kSide, channels, turned + i, kApart);
        else
          number_square<false>(from, channels - c, pixels - i, channels, turned + i, kApart);
      }
      for (int64_t k = 0; k < kSide && c + k < channels; ++k)
        __builtin_memcpy(to + (c + k) * plane + first, turned + k * kApart,
                         static_cast<size_t>(pixels) * sizeof(float));
    }
}

void finish_rows(const FloatMap& x, const Finish& f, int64_t width, int64_t channels, int64_t first,
                 int64_t last) {
  for (int64_t y = first; y < last; ++y)
    for (int64_t c = 0; c < filled(channels, kMapLanes); c += kFinishLanes)
      with_finish<kFinishLanes>(f, width, c, 0, [&](const auto& finish) QSR_INLINED {
        const Lanes<kFinishLanes, true> from(x, c);
        if constexpr (requires(Spot at) { finish.finish(from.load(at), at); })
          for (int64_t i = 0; i < width; ++i) finish.finish(from.load({y, i, 0}), {y, i, 0});
      });
}

template <Op op>
void element_of(const float* x, float* y, int64_t count) {
  const Applied<kFinishLanes, op, false> function({op, 1.0f, nullptr, 0, {}}, 0);
  for (int64_t i = 0; i < count; i += kFinishLanes)
    store_some<kFinishLanes>(y + i, count - i,
                             function(load_some<kFinishLanes>(x + i, count - i), {}));
}

void element(Op op, const float* x, float* y, int64_t count) {
  switch (op) {
    case Op::kSigmoid: return element_of<Op::kSigmoid>(x, y, count);
    case Op::kGelu: return element_of<Op::kGelu>(x, y, count);
    case Op::kSilu: return element_of<Op::kSilu>(x, y, count);
    default: return element_of<Op::kTanh>(x, y, count);
  }
}

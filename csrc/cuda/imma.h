// CUDA rung 1: the 3x3 layer on integer tensor cores, without a word of CUDA (see core.h).
//
// A convolution is a product of matrices, with one row for each output channel, one column for each
// pixel and one summand for each tap and input channel:
//
//     sums [channels, pixels] = weights [channels, 9 * channels] x codes [9 * channels, pixels]
//
// The right factor would repeat every code nine times, so it is never written down ("implicit"): a
// block of threads brings the pixels of its tile and a frame around them into shared memory once, a
// byte a code, and each tap reads the same bytes a pixel further. The hardware multiplies pieces of
// 16 channels by 32 summands by 8 pixels (`mma.m16n8k32`), whose numbers lie spread over the
// registers of the 32 threads of a warp; `a_place`, `b_place` and `d_place` below say where.
//
// What a block asks of the hardware is a template argument, the Machine:
//
//     PerThread<T>        a variable of each thread: [thread]
//     threads(f)          f(thread) for all threads of the block, then a barrier
//     warps(f)            f(warp) for all warps of the block, then a barrier
//     lanes(warp, f)      f(thread) for the threads of a warp
//     multiply(warp, at)  the instruction: at(thread) says in which registers its operands lie
//
// imma.cu has the GPU's. tests/cuda_on_host.cpp has one of plain loops, which runs the warps
// forwards or backwards and multiplies the matrices as the definition says; so every line here
// is held to qsr.reference without a GPU.
#pragma once
#include "cuda/core.h"

#ifdef __CUDACC__
#define QSR_TILE __device__ inline
#define QSR_UNROLL _Pragma("unroll")
#define QSR_ROLLED _Pragma("unroll 1")
#else
#define QSR_TILE inline
#define QSR_UNROLL
#define QSR_ROLLED
#endif

namespace qsr {

constexpr int kLanes = 32, kWarps = 4, kBlockThreads = kLanes * kWarps;
constexpr int kDepth = 64;    // input channels in shared memory at once: one word of a plane
constexpr int kOutputs = 64;  // output channels of a block
constexpr int kTileRows = 8, kTileColumns = 16;  // pixels of a block; a warp has two rows
constexpr int kFrameColumns = kTileColumns + 2, kFramePixels = (kTileRows + 2) * kFrameColumns;
constexpr int kSharedBytes = kFramePixels * kDepth;

// The instruction -----------------------------------------------------------------------------
//
// D [16, 8] += A [16, 32] x B [32, 8]: where the element of a register lies in its matrix.
// Registers of A and B hold four bytes. PTX ISA, "Matrix fragments for mma.m16n8k32", 8-bit types.

constexpr int kM = 16, kN = 8, kK = 32;

struct Element {
  int row, column;
};
QSR_EACH constexpr Element a_place(int lane, int reg, int byte) {
  return {lane / 4 + 8 * (reg % 2), 4 * (lane % 4) + byte + 16 * (reg / 2)};
}
QSR_EACH constexpr Element b_place(int lane, int reg, int byte) {
  return {4 * (lane % 4) + byte + 16 * reg, lane / 4};
}
QSR_EACH constexpr Element d_place(int lane, int reg) {
  return {lane / 4 + 8 * (reg / 2), 2 * (lane % 4) + reg % 2};
}

struct Operands {  // the registers of one thread
  int32_t* d;
  const uint32_t *a, *b;  // 4 and 2
};

// Which channels the rows and summands are ------------------------------------------------------
//
// A sum does not care for the order of its summands, nor a matrix for that of its rows. So both are
// chosen for memory; the weights, laid out once, follow.
//
// Summands: of 64 channels a thread needs 8 bytes for each of two instructions. It takes
// 16 * (lane % 4) and the 15 that follow, so it reads 16 bytes at once. Shared memory serves 8
// threads at a time: those read two neighbouring pixels, which are 128 neighbouring bytes, all 32
// banks once. No conflict, no padding and no swizzle.
//
// Rows: of 64 channels a thread holds 8 for each pixel. They are 4 * (lane / 4) and the three that
// follow, and those 32 further on. So four neighbouring channels are one access of 16 bytes, and
// the 8 threads of a pixel touch 128 neighbouring bytes of a float map, 32 of a map of codes.

QSR_EACH constexpr int channel_in(int step, int k) {  // step 0 or 1; k: row of B, column of A
  return 16 * (k % 16 / 4) + 8 * step + 4 * (k / 16) + k % 4;
}
QSR_EACH constexpr int channel_out(int part, int m) {  // part 0 to 3; m: row of A and D
  return 32 * (part / 2) + 4 * (m % 8) + 2 * (part % 2) + m / 8;
}

// 16 bytes, at an address that is a multiple of 16.
template <class T>
struct alignas(16) Four {
  T of[4];
};
typedef Four<uint32_t> Bytes16;
typedef Four<float> Floats;

template <class T>
QSR_EACH Four<T> load(const T* from) {
  return *reinterpret_cast<const Four<T>*>(from);
}
template <class T>
QSR_EACH void store(T* to, Four<T> x) {
#ifdef __CUDA_ARCH__  // nvcc takes an assignment apart into four stores
  __stwb(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&x));
#else
  *reinterpret_cast<Four<T>*>(to) = x;
#endif
}

// Weights -----------------------------------------------------------------------------------------
//
// In the order in which threads read them: [outputs / 64, in / 64, 9, step, part, lane], 16 bytes
// each, the four registers of A.

constexpr int64_t kWeightWords = 9 * 2 * 4 * kLanes * 4;  // of 64 x 64 channels, 4 bytes each

struct ImmaWeights {    // signed codes, from one of
  const Word* planes;   // [outputs, 9, bits, chunks]
  const int8_t* codes;  // [outputs, 9, 64 * chunks]
  int64_t outputs, chunks;
  int bits;
  bool is_signed;  // of planes; then bits are at most 7, so that codes fit a signed byte
  uint32_t* out;
};

QSR_EACH int weight_code(const ImmaWeights& job, int64_t output, int64_t tap, int64_t channel) {
  if (output >= job.outputs) return 0;
  const int64_t row = output * 9 + tap;
  if (job.codes) return job.codes[row * job.chunks * kDepth + channel];
  const Word* words = job.planes + row * job.bits * job.chunks + channel / kDepth;
  int code = 0;
  for (int i = 0; i < job.bits; ++i)
    if (words[i * job.chunks] >> (channel % kDepth) & 1)
      code += plane_weight(i, job.bits, job.is_signed);
  return code;
}

// Four bytes of the layout: register index % 4 of a lane.
QSR_EACH uint32_t weight_word(const ImmaWeights& job, int64_t index) {
  const int reg = index % 4, lane = index / 4 % kLanes, part = index / 128 % 4;
  const int step = index / 512 % 2, tap = index / 1024 % 9;
  const int64_t chunk = index / kWeightWords % job.chunks,
                block = index / kWeightWords / job.chunks;
  uint32_t word = 0;
  for (int byte = 0; byte < 4; ++byte) {
    const Element at = a_place(lane, reg, byte);
    const int code = weight_code(job, block * kOutputs + channel_out(part, at.row), tap,
                                 chunk * kDepth + channel_in(step, at.column));
    word |= static_cast<uint32_t>(code & 255) << (8 * byte);
  }
  return word;
}

// The layer ---------------------------------------------------------------------------------------

// Which public convolutions are such layers; weights must fit a signed byte.
inline bool imma_takes(const Conv2d& job) {
  return job.kernel_h == 3 && job.kernel_w == 3 && job.stride_h == 1 && job.stride_w == 1 &&
         job.pad_h == 1 && job.pad_w == 1 && job.groups == 1 && (job.w_signed || job.w_bits < 8);
}

constexpr int kMostSkips = 64;

// What becomes of the sums: finish.h of csrc/network, for maps without frames.
struct ImmaFinish {
  int32_t* sums;         // if given, the sums themselves and nothing else:
  int64_t sum_channels;  // [n, height, width, sum_channels]

  const float *scale, *bias;
  bool relu;              // only without a residual
  const float* residual;  // null: none
  float shortcut;
  float skips[kMostSkips];
  int skip_count;
  float* out;  // null: none; may be `residual`

  uint8_t* codes;  // null: none
  const float* tau;
  CodeRange range;
};

struct ImmaConv {        // codes from one of
  const Word* planes;    // [n, height, width, in_bits, chunks]
  const uint8_t* codes;  // [n, height, width, 64 * chunks], u8 if unsigned, s8 if signed
  int in_bits;           // of planes
  bool in_signed;
  const uint32_t* weights;
  int64_t n, height, width, chunks, out_channels;  // a multiple of 64
  ImmaFinish finish;

  QSR_EACH int64_t rows() const { return (height + kTileRows - 1) / kTileRows; }
  QSR_EACH int64_t columns() const { return (width + kTileColumns - 1) / kTileColumns; }
  QSR_EACH int64_t groups() const { return out_channels / kOutputs; }
  QSR_EACH int64_t blocks() const { return n * rows() * columns() * groups(); }
};

struct Tile {  // the first pixel of a block, and its first channel
  int64_t n, y, x, channel;
};

// Blocks with the same pixels follow each other, so that the cache serves all but the first.
QSR_EACH Tile tile_of(const ImmaConv& job, int64_t block) {
  const int64_t at = block / job.groups();
  return {at / job.columns() / job.rows(), at / job.columns() % job.rows() * kTileRows,
          at % job.columns() * kTileColumns, block % job.groups() * kOutputs};
}

// Bits 0 to 3, as four bytes of 0 or 1.
QSR_EACH uint32_t spread(uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

// 16 codes of a pixel: channels 16 * quarter and on of a chunk. Plane i adds its weight to the
// bytes whose bit is set; the top plane of signed codes sets bit i and all above it, which is the
// sign.
QSR_EACH Bytes16 codes_of(const ImmaConv& job, int64_t pixel, int64_t chunk, int quarter) {
  if (job.codes) {
    const uint8_t* from = job.codes + (pixel * job.chunks + chunk) * kDepth + 16 * quarter;
    return *reinterpret_cast<const Bytes16*>(from);
  }
  const Word* words = job.planes + pixel * job.in_bits * job.chunks + chunk;
  Bytes16 codes{};
  for (int i = 0; i < job.in_bits; ++i) {
    const uint32_t bits = static_cast<uint32_t>(words[i * job.chunks] >> (16 * quarter));
    const uint32_t weight = plane_weight(i, job.in_bits, job.in_signed) & 255;
    for (int k = 0; k < 4; ++k) codes.of[k] |= spread(bits >> (4 * k)) * weight;
  }
  return codes;
}

// A thread's share of the tile and its frame; a pixel beyond the picture is code 0.
QSR_EACH void bring(const ImmaConv& job, const Tile& tile, int64_t chunk, int thread,
                    uint8_t* shared) {
  for (int piece = thread; piece < 4 * kFramePixels; piece += kBlockThreads) {
    const int64_t y = tile.y + piece / 4 / kFrameColumns - 1;
    const int64_t x = tile.x + piece / 4 % kFrameColumns - 1;
    const bool inside = y >= 0 && y < job.height && x >= 0 && x < job.width;
    reinterpret_cast<Bytes16*>(shared)[piece] =
        inside ? codes_of(job, (tile.n * job.height + y) * job.width + x, chunk, piece % 4)
               : Bytes16{};
  }
}

// A warp has 64 channels, in four parts of 16, and 32 pixels, in four parts of 8: two of each of
// its two rows. Part p begins at:
QSR_EACH constexpr int part_row(int warp, int p) { return 2 * warp + p / 2; }
QSR_EACH constexpr int part_column(int p) { return kN * (p % 2); }

// Where in shared memory a thread finds its codes of pixels p, for a tap: 16 bytes.
QSR_EACH constexpr int code_place(int thread, int p, int tap) {
  const int lane = thread % kLanes, y = part_row(thread / kLanes, p) + tap / 3;
  return (y * kFrameColumns + part_column(p) + tap % 3 + lane / 4) * kDepth + 16 * (lane % 4);
}

struct Sums {
  int32_t of[4][4][4];  // part of channels, part of pixels, register of D
};
struct Factors {
  Bytes16 weights[2][4], codes[4];  // step, part of channels; part of pixels
};

template <class Machine, class PerThreadSums>
QSR_TILE void multiply(Machine& machine, int warp, const uint32_t* weights, const uint8_t* shared,
                       PerThreadSums& sums) {
  // Unrolled it takes 132 registers instead of 124 on sm_80: three blocks a multiprocessor for
  // four.
  QSR_ROLLED
  for (int tap = 0; tap < 9; ++tap) {
    typename Machine::template PerThread<Factors> factors;
    machine.lanes(warp, [&](int thread) {
      const auto* from = reinterpret_cast<const Bytes16*>(weights) + tap * 8 * kLanes;
      QSR_UNROLL
      for (int i = 0; i < 8; ++i)
        factors[thread].weights[i / 4][i % 4] = from[i * kLanes + thread % kLanes];
      QSR_UNROLL
      for (int p = 0; p < 4; ++p)
        factors[thread].codes[p] =
            *reinterpret_cast<const Bytes16*>(shared + code_place(thread, p, tap));
    });
    QSR_UNROLL
    for (int i = 0; i < 32; ++i) {
      const int step = i / 16, part = i / 4 % 4, p = i % 4;
      machine.multiply(warp, [&](int thread) {
        Factors& f = factors[thread];
        return Operands{sums[thread].of[part][p], f.weights[step][part].of,
                        f.codes[p].of + 2 * step};
      });
    }
  }
}

// Skipped blocks, the float map and the codes of four channels, from channel c on; at: of the maps.
QSR_EACH void pass_on(const ImmaFinish& f, Floats y, int64_t c, int64_t at) {
  for (int i = 0; i < f.skip_count; ++i)
    for (float& value : y.of) value = f.skips[i] * value;
  if (f.out) store(f.out + at, y);
  if (!f.codes) return;
  const Floats tau = load(f.tau + c);
  uint32_t codes = 0;
  for (int k = 0; k < 4; ++k)
    codes |= static_cast<uint32_t>(code_of(y.of[k] + tau.of[k], f.range) & 255) << (8 * k);
  *reinterpret_cast<uint32_t*>(f.codes + at) = codes;
}

QSR_EACH void finish(const ImmaFinish& f, Four<int32_t> sums, int64_t c, int64_t at) {
  const Floats scale = load(f.scale + c), bias = load(f.bias + c);
  Floats y;
  for (int k = 0; k < 4; ++k) y.of[k] = static_cast<float>(sums.of[k]) * scale.of[k] + bias.of[k];
  if (f.residual) {
    const Floats residual = load(f.residual + at);
    for (int k = 0; k < 4; ++k) y.of[k] = f.shortcut * residual.of[k] + y.of[k];
  } else if (f.relu) {
    for (float& value : y.of) value = value < 0.0f ? 0.0f : value;  // NaN stays
  }
  pass_on(f, y, c, at);
}

QSR_EACH void store_sums(const ImmaFinish& f, Four<int32_t> sums, int64_t c, int64_t pixel) {
  int32_t* to = f.sums + pixel * f.sum_channels + c;
  if (f.sum_channels % 4 == 0 && c < f.sum_channels)
    store(to, sums);
  else
    for (int64_t k = 0; k < 4 && c + k < f.sum_channels; ++k) to[k] = sums.of[k];
}

// What a thread does with its sums: 8 channels of 8 pixels.
QSR_EACH void finish_tile(const ImmaConv& job, const Tile& tile, int thread, const Sums& sums) {
  const int lane = thread % kLanes;
  QSR_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int p = i / 2, right = i % 2;
    const int64_t y = tile.y + part_row(thread / kLanes, p);
    const int64_t x = tile.x + part_column(p) + d_place(lane, right).column;
    if (y >= job.height || x >= job.width) continue;
    const int64_t pixel = (tile.n * job.height + y) * job.width + x;
    QSR_UNROLL
    for (int half = 0; half < 2; ++half) {
      const auto& low = sums.of[2 * half][p];  // registers: two rows of D, two columns
      const auto& high = sums.of[2 * half + 1][p];
      const Four<int32_t> four{{low[right], low[2 + right], high[right], high[2 + right]}};
      const int64_t c = tile.channel + channel_out(2 * half, d_place(lane, right).row);
      if (job.finish.sums)
        store_sums(job.finish, four, c, pixel);
      else
        finish(job.finish, four, c, pixel * job.out_channels + c);
    }
  }
}

template <class Machine>
QSR_TILE void imma_block(Machine& machine, const ImmaConv& job, int64_t block, uint8_t* shared) {
  const Tile tile = tile_of(job, block);
  typename Machine::template PerThread<Sums> sums{};
  const uint32_t* weights = job.weights + tile.channel / kOutputs * job.chunks * kWeightWords;
  for (int64_t chunk = 0; chunk < job.chunks; ++chunk, weights += kWeightWords) {
    machine.threads([&](int thread) { bring(job, tile, chunk, thread, shared); });
    machine.warps([&](int warp) { multiply(machine, warp, weights, shared, sums); });
  }
  machine.threads([&](int thread) { finish_tile(job, tile, thread, sums[thread]); });
}

}  // namespace qsr

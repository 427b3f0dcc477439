// Winograd in integers: what its two rows have in common. Tiles of kTile x kTile outputs Y are
// computed from patches D of (kTile + 2) x (kTile + 2) inputs and weights G of 3 x 3 as
//
//     2^kShift Y = A' [(H G H') o (B' D B)] A              o: product element by element
//
// A file includes this inside its own anonymous namespace after finish.h, when it has written
//
//     kTile, kForms, kShift            outputs and products of a tile in each direction
//     kMostBits, kOffsets              of codes; what makes them unsigned when they are transformed
//     kB, kH, kA                       B' [kForms][kTile + 2], H [kForms][3], A' [kTile][kForms]
//     kTiles, kVectors, kLanes         what is multiplied at once: tiles, and outputs in vectors
//     depth_of(shape)                  channels of a tile
//
// and then writes a struct Group, the work on kTiles tiles, for `drive`:
//
//     Products                         room for the results of a multiplication
//     Group(job, tiles, products)      tiles: room for the transformed patches,
//                                      u8 [kForms, kForms, kTiles, channels] in any order
//     void transform(from, t)          makes those of tile t, whose patch begins at `from`
//     Rows multiply(b, count)          sums of `count` tiles and outputs [b, b + kBlock), or those
//                                      that there are, of which
//                                      rows(t, v, r, Int y[kTile]) are those of row r of tile t,
//                                      vector v of outputs, as 2^kShift Y
//
// Where a pixel lies, in the picture and then in the lanes of registers (here kTile = 2):
//
//     the picture: patches of        a pixel in a register of `transform`: a lane is a channel,
//     4x4 pixels overlap by 2,       a byte of 64 (AVX-512) or 32 (AVX2) together
//     the tiles p, q, r do not
//                                      | c0 | c1 | c2 | c3 | c4 | ...                      | c63 |
//       . . . . . . . .
//       . p p q q r r .              a position of the group, in `tiles`: u8 in memory
//       . p p q q r r .
//       . . . . . . . .                tile 0 (p)   | c0  c1  c2  c3 | c4  c5  c6  c7 | ...
//                                      tile 1 (q)   | c0  c1  c2  c3 | c4  c5  c6  c7 | ...
//     a group: kTiles tiles that         ...
//     follow each other, also          tile 5       | c0  c1  c2  c3 | c4  c5  c6  c7 | ...
//     from one row to the next
//
//     its sums in registers of `multiply`: a lane is an output, 16 (AVX-512) or 8 (AVX2) together
//
//                        vector 0                        vector 1
//       tile 0 (p)   | o0 | o1 | o2 | ... | o15 |    | o16 | o17 | ... | o31 |
//       tile 1 (q)   | o0 | o1 | o2 | ... | o15 |    | o16 | o17 | ... | o31 |
//         ...
//       tile 5       | o0 | o1 | o2 | ... | o15 |    | o16 | o17 | ... | o31 |
//
//     One multiplication adds to each lane of a register the four products of c0 c1 c2 c3 of its
//     tile, the same in all lanes, with c0 c1 c2 c3 of the weights of the lane's output. VPDPBUSD
//     adds all four into 32 bits; VPMADDUBSW keeps c0 c1 and c2 c3 apart, as 16-bit halves.

constexpr int kBlock = kVectors * kLanes, kPatch = kTile + 2;
typedef Vector<kLanes>::Int Int;

// None for unsigned codes at position (1, 1), where all signs are plus.
constexpr int offset_at(int row, int column, int offset, bool is_signed) {
  return row == 1 && column == 1 && !is_signed ? 0 : offset;
}

// Whether `forms`, which a kernel computes with vectors, is the product by this matrix.
template <int rows, int columns>
constexpr bool computes(const int (&matrix)[rows][columns], void (*forms)(const int*, int*)) {
  for (int k = 0; k < columns; ++k) {
    int x[columns] = {}, y[rows] = {};
    x[k] = 1;
    forms(x, y);
    for (int i = 0; i < rows; ++i)
      if (y[i] != matrix[i][k]) return false;
  }
  return true;
}

// matrix X matrix', of single numbers: the weights and the constants of a layer.
template <class T, int rows, int columns>
QSR_INLINE void both_sides(const int (&matrix)[rows][columns], const T (&x)[columns][columns],
                           T (&y)[rows][rows]) {
  T half[rows][columns] = {};
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < columns; ++j)
#pragma GCC unroll 8
      for (int k = 0; k < columns; ++k) half[i][j] += matrix[i][k] * x[k][j];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < rows; ++j) {
      y[i][j] = 0;
#pragma GCC unroll 8
      for (int k = 0; k < columns; ++k) y[i][j] += half[i][k] * matrix[j][k];
    }
}

// H G H' of the weights [3, 3, in_channels] of one output at one input channel.
QSR_INLINE void weight_forms(const int8_t* weights, int64_t in, int (&u)[kForms][kForms]) {
  int g[3][3];
  for (int tap = 0; tap < 9; ++tap) g[tap / 3][tap % 3] = weights[tap * in];
  both_sides(kH, g, u);
}

// `count` tiles from tile `first` on, one vector of outputs: their sums, and what follows.
template <class Rows, class Use>
QSR_INLINE void outputs(const Conv& job, const Rows& rows, int v, int64_t first, int64_t count,
                        const Use& use) {
  const int64_t height = job.height, width = job.width;
  const int64_t columns = (width + kTile - 1) / kTile;
  int64_t ty = first / columns, tx = first % columns;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t valid = width - kTile * tx < kTile ? width - kTile * tx : kTile;
    for (int r = 0; r < kTile && kTile * ty + r < height; ++r) {
      Int y[kTile];
      rows(t, v, r, y);
#pragma GCC unroll 4
      for (int x = 0; x < kTile; ++x)
        if (x < valid) use(y[x], Spot{kTile * ty + r, kTile * tx, x});
    }
    if (++tx == columns) tx = 0, ++ty;
  }
}

// A function of its own, so that gcc has registers for what happens at each pixel.
template <class Rows>
__attribute__((noinline)) void finish_vector(const Conv& job, Rows rows, int64_t b, int v,
                                             int64_t first, int64_t count) {
  with_finish<kLanes>(job.finish, job.width, b + v * kLanes, kShift,
                      [&](const auto& finish) QSR_INLINED {
                        outputs(job, rows, v, first, count, finish);
                      });
}

// For 64 channels the tiles take 19 KB (2x2: 6), and their products 21 (9): both stay in the
// second-level cache.
inline int64_t tiles_bytes(const ConvShape& s) {
  return filled(kForms * kForms * kTiles * depth_of(s), 64);
}
template <class Group>
int64_t scratch_bytes(const ConvShape& s) {
  return tiles_bytes(s) + static_cast<int64_t>(sizeof(typename Group::Products));
}

bool takes(const ConvShape& s) {
  // 2^kShift times the sums must fit, too
  return s.is_3x3() && s.in_bits <= kMostBits && s.weight_bits <= kMostBits && s.in <= 65536;
}

template <class Group>
void drive(const Conv& job, int64_t first, int64_t last, void* scratch) {
  const int64_t columns = (job.width + kTile - 1) / kTile, rows = (job.height + kTile - 1) / kTile;
  const int64_t end = (last < rows ? last : rows) * columns, out = filled(job.shape.out, kMapLanes);
  auto* tiles = static_cast<uint8_t*>(scratch);
  const Group group(job, tiles,
                    *reinterpret_cast<typename Group::Products*>(tiles + tiles_bytes(job.shape)));
  for (int64_t n = first * columns; n < end; n += kTiles) {
    const int64_t count = end - n < kTiles ? end - n : kTiles;
    for (int64_t t = 0; t < count; ++t)
      group.transform(job.in.at((n + t) / columns * kTile - 1, (n + t) % columns * kTile - 1), t);
    for (int64_t b = 0; b < out; b += kBlock) {
      const auto sums = group.multiply(b, count);
      for (int v = 0; v < kVectors && b + v * kLanes < out; ++v)
        finish_vector(job, sums, b, v, n, count);
    }
  }
}

// SPDX-License-Identifier: MIT
#include "cpu/marching_cubes_rows.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/types.h"

namespace occ::cpu {
namespace OCC_ISA {
namespace {

#if defined(__AVX2__)
inline __m256 load_lanes(const float* source) { return _mm256_loadu_ps(source); }
inline __m256d load_lanes(const double* source) { return _mm256_loadu_pd(source); }
inline __m256 load_lanes(const half_t* source) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
}
inline __m256 load_lanes(const bf16_t* source) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline __m256 broadcast(float value) { return _mm256_set1_ps(value); }
inline __m256d broadcast(double value) { return _mm256_set1_pd(value); }
inline unsigned greater(__m256 a, __m256 b) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}
inline unsigned greater(__m256d a, __m256d b) {
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)));
}
inline __m256 add_nan(__m256 seen, __m256 v) { return _mm256_or_ps(seen, _mm256_cmp_ps(v, v, _CMP_UNORD_Q)); }
inline __m256d add_nan(__m256d seen, __m256d v) { return _mm256_or_pd(seen, _mm256_cmp_pd(v, v, _CMP_UNORD_Q)); }
inline bool any(__m256 mask) { return _mm256_movemask_ps(mask) != 0; }
inline bool any(__m256d mask) { return _mm256_movemask_pd(mask) != 0; }
#endif

// Signs of up to 64 consecutive values. NaN is looked for on the way, where it costs nothing: the loop waits for
// memory.
template <class T>
uint64_t pack(const T* values, int count, acc_t<T> level, bool& nan) {
  using S = acc_t<T>;
  uint64_t bits = 0;
  int i = 0;
#if defined(__AVX2__)
  constexpr int kLanes = 32 / static_cast<int>(sizeof(S));
  const auto bound = broadcast(level);
  auto seen = broadcast(S(0));
  for (; i + kLanes <= count; i += kLanes) {
    const auto lanes = load_lanes(values + i);
    bits |= static_cast<uint64_t>(greater(lanes, bound)) << i;
    seen = add_nan(seen, lanes);
  }
  nan |= any(seen);
#endif
  for (; i < count; ++i) {
    const S value = static_cast<S>(values[i]);
    bits |= static_cast<uint64_t>(value > level) << i;
    nan |= value != value;
  }
  return bits;
}

template <class T>
void pack_typed(const mc::Volume& volume, const mc::SignGrid& grid, int64_t* nan, int64_t begin, int64_t end) {
  using S = acc_t<T>;
  const S level = static_cast<S>(volume.level);
  const int64_t pad = volume.pad;
  const uint64_t outside = pad != 0 && static_cast<S>(volume.pad_value) > level ? ~uint64_t{0} : 0;
  for (int64_t r = begin; r < end; ++r) {
    const mc::Row row = mc::row_at(grid, r);
    uint64_t* words = grid.words + r * grid.row_words;
    const int64_t x = row.x - pad, y = row.y - pad;
    const bool virtual_row = x < 0 || y < 0 || x >= volume.size[0] || y >= volume.size[1];
    const T* values = nullptr;
    if (!virtual_row) {
      values =
          static_cast<const T*>(volume.data) + row.b * volume.stride_batch + x * volume.stride_x + y * volume.stride_y;
    }
    bool found = false;
    for (int64_t w = 0; w < grid.row_words; ++w) {
      // Nodes [64 w, last) of the row hold values [from, to).
      const int64_t last = 64 * w + 64 < grid.nz ? 64 * w + 64 : grid.nz;
      uint64_t bits = outside;
      if (!virtual_row) {
        const int64_t from = w == 0 ? 0 : 64 * w - pad;
        const int64_t to = last - pad < volume.size[2] ? last - pad : volume.size[2];
        const int shift = static_cast<int>(from + pad - 64 * w);
        const int count = to > from ? static_cast<int>(to - from) : 0;
        if (count > 0) {
          const uint64_t covered = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << shift;
          bits = (outside & ~covered) | pack(values + from, count, level, found) << shift;
        }
      }
      const int64_t nodes = last - 64 * w;
      words[w] = nodes == 64 ? bits : bits & ((uint64_t{1} << nodes) - 1);
    }
    nan[r] = found ? 1 : 0;
  }
}

}  // namespace

void pack_rows(const mc::Volume& volume, const mc::SignGrid& grid, int64_t* nan, int64_t begin, int64_t end) {
  dispatch(volume.dtype, [&](auto type) { pack_typed<typename decltype(type)::type>(volume, grid, nan, begin, end); });
}

void count_rows(const mc::SignGrid& grid, int64_t* vertices, int64_t* triangles, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const mc::Row row = mc::row_at(grid, r);
    const mc::RowSigns signs = mc::row_signs(grid, row);
    const bool has_cells = mc::owns_cells(grid, row);
    const uint64_t* around[4] = {signs.here, signs.after_y, signs.after_x,
                                 signs.after_x + (signs.after_y - signs.here)};
    int64_t vertex_count = 0, triangle_count = 0;
    for (int64_t w = 0; w < grid.row_words; ++w) {
      vertex_count += mc::vertex_count(mc::crossings(grid, signs, w));
      if (!has_cells) continue;
      const mc::Cells cells = mc::cells(grid, around, w);
      for (uint64_t left = cells.active; left != 0; left &= left - 1) {
        triangle_count += mc::triangle_count(mc::cell_case(cells, mc::lowest_bit(left)));
      }
    }
    vertices[r] = vertex_count;
    triangles[r] = triangle_count;
  }
}

void emit_rows(const mc::SignGrid& grid, const int64_t* vertex_rows, const int64_t* face_rows, int64_t* faces,
               int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    if (face_rows[r] == face_rows[r + 1]) continue;
    int64_t* out = faces + 3 * face_rows[r];
    const mc::Row row = mc::row_at(grid, r);
    const int64_t base = vertex_rows[row.b * grid.nx * grid.ny];
    mc::RowSigns signs[4];
    const uint64_t* around[4];
    mc::Crossings next[4];
    mc::RowRanks ranks[4];
    for (int k = 0; k < 4; ++k) {
      const mc::Row nodes = mc::neighbour(grid, row, k >> 1, k & 1);
      signs[k] = mc::row_signs(grid, nodes);
      around[k] = signs[k].here;
      next[k] = mc::crossings(grid, signs[k], 0);
      ranks[k].first = vertex_rows[nodes.index] - base;
    }
    for (int64_t w = 0; w < grid.row_words; ++w) {
      uint64_t crossed = 0;
      for (int k = 0; k < 4; ++k) {
        ranks[k].here = next[k];
        crossed |= next[k].x | next[k].y | next[k].z;
        next[k] = w + 1 < grid.row_words ? mc::crossings(grid, signs[k], w + 1) : mc::Crossings{0, 0, 0};
      }
      if (crossed == 0) continue;
      for (int k = 0; k < 4; ++k) ranks[k].above = mc::move_down(ranks[k].here, next[k]);
      const mc::Cells cells = mc::cells(grid, around, w);
      for (uint64_t left = cells.active; left != 0; left &= left - 1) {
        const int bit = mc::lowest_bit(left);
        const unsigned code = mc::cell_case(cells, bit);
        int64_t vertex[12];
        mc::cell_vertices(ranks, bit, vertex);
        const uint8_t* edges = mc::triangle_edges(code);
        const int corners = 3 * mc::triangle_count(code);
        for (int i = 0; i < corners; ++i) *out++ = vertex[edges[i]];
      }
      for (int k = 0; k < 4; ++k) ranks[k].first += mc::vertex_count(ranks[k].here);
    }
  }
}

}  // namespace OCC_ISA
}  // namespace occ::cpu

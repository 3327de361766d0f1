// SPDX-License-Identifier: MIT
#include "cpu/marching_cubes_bricks.h"

#include "common/types.h"
#include "cpu/marching_cubes_pack.h"
#include "math/marching_cubes_brick_values.h"

namespace occ::cpu {
namespace OCC_ISA {
namespace {

template <class T>
void pack_typed(const mc::Bricks& bricks, const mc::BrickValues& values, int64_t begin, int64_t end) {
  using S = acc_t<T>;
  const S level = static_cast<S>(values.level);
  const mc::BrickField<T> field(bricks, values);
  for (int64_t e = begin; e < end; ++e) {
    uint64_t* words = mc::brick_words(bricks, e);
    const int64_t row = bricks.source == nullptr ? e : bricks.source[e];
    if (row >= 0) {
      for (int x = 0; x < 8; ++x) {
        mc::pack_known(field.data + row * mc::kBrickNodes + 64 * x, level, words[mc::kSigns + x],
                       words[mc::kKnown + x]);
      }
      continue;
    }
    for (int x = 0; x < 8; ++x) {
      uint64_t signs = 0, known = 0;
      for (int bit = 0; bit < 64; ++bit) {
        const S value = field({e, x, bit});
        signs |= static_cast<uint64_t>(value > level) << bit;
        known |= static_cast<uint64_t>(value == value) << bit;
      }
      words[mc::kSigns + x] = signs;
      words[mc::kKnown + x] = known;
    }
  }
}

}  // namespace

void pack_bricks(const mc::Bricks& bricks, const mc::BrickValues& values, int64_t begin, int64_t end) {
  dispatch(values.dtype, [&](auto type) { pack_typed<typename decltype(type)::type>(bricks, values, begin, end); });
}

void complete_bricks(const mc::Bricks& bricks, int64_t begin, int64_t end) {
  for (int64_t e = begin; e < end; ++e) mc::complete_cells(bricks, e);
}

void count_bricks(const mc::Bricks& bricks, int64_t* vertices, int64_t* triangles, int64_t begin, int64_t end) {
  for (int64_t e = begin; e < end; ++e) {
    const mc::BrickCounts counts = mc::count_brick(bricks, e);
    vertices[e] = counts.vertices;
    triangles[e] = counts.triangles;
  }
}

void emit_bricks(const mc::Bricks& bricks, const int64_t* vertex_bricks, const int64_t* face_bricks,
                 const int64_t* vertex_offsets, int64_t* faces, int64_t begin, int64_t end) {
  for (int64_t e = begin; e < end; ++e) {
    if (face_bricks[e] == face_bricks[e + 1]) continue;
    int64_t first[3];
    const int64_t base = vertex_offsets[mc::brick_place(bricks, e, first)];
    mc::emit_brick_faces(bricks, vertex_bricks, e, base, faces + 3 * face_bricks[e]);
  }
}

}  // namespace OCC_ISA
}  // namespace occ::cpu

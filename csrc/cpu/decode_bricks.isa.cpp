// SPDX-License-Identifier: MIT
// The residual decoder on regular bricks of 8 x 8 x 8 queries.
//
// Up to 8 nodes of a brick lie above each other in a plane, so a plane is sampled, and the feature layers applied, once
// for each pair of coordinates in use. Where the brick touches fewer cells than pairs, or of the grid fewer than nodes,
// the layers are applied to the cells first and the results interpolated: both are linear. A third of the network's
// products falls away. Where neither pays for the nodes wanted of a brick, its features are sampled node by node; that
// decision looks at the brick alone.
#include "common/parallel.h"
#include "cpu/decode.h"
#include "cpu/decode_tile.h"

namespace occ::cpu {
namespace OCC_ISA {
namespace {

constexpr int kSide = 8;
constexpr int kNodes = kSide * kSide * kSide;
constexpr int kCells = 132;  // cells of a map taken at most, a multiple of kRowStep
constexpr int64_t kTask = 4;
constexpr int kPairs = (kSide * kSide + kRowStep - 1) / kRowStep * kRowStep;  // rows of a plane's table
static_assert(kPairs <= kCells);

// One axis of a map at the brick's nodes.
struct Axis {
  int32_t low[kSide];  // from the first cell of the brick
  float upper[kSide];
  int32_t first, count;
};

OCC_INLINE Axis locate_axis(const MapRule<float>& rule, const float* place) {
  Axis axis;
  int32_t least = rule.resolution, most = 0;
  for (int i = 0; i < kSide; ++i) {
    float slope;
    const float u = position_of(rule, place[i], slope);
    axis.low[i] = low_node(rule, u);
    axis.upper[i] = u - static_cast<float>(axis.low[i]);
    least = axis.low[i] < least ? axis.low[i] : least;
    most = axis.low[i] > most ? axis.low[i] : most;
  }
  for (int32_t& low : axis.low) low -= least;
  axis.first = least;
  axis.count = most - least + (rule.resolution > 1 ? 2 : 1);
  return axis;
}

// out = sum of the weighted corners, `width` channels (a multiple of 16).
template <int CORNERS>
OCC_INLINE void blend(const float* cell, const int64_t* corner, const float* weight, int64_t width, float* out) {
  Vector w[CORNERS];
  OCC_UNROLL for (int c = 0; c < CORNERS; ++c) w[c] = spread_value(weight[c]);
  for (int64_t at = 0; at < width; at += kVector) {
    Vector sum = w[0] * load(cell + corner[0] + at);
    OCC_UNROLL for (int c = 1; c < CORNERS; ++c) sum = multiply_add(w[c], load(cell + corner[c] + at), sum);
    store_simd(out + at, sum);
  }
}

struct Brick {
  Tile& tile;
  const Maps& maps;
  int64_t shape = 0, width;  // of a projected row: depth * padded hidden channels
  float place[3][kSide];
  int32_t node[kNodes];
  int wanted = 0;
  bool projected[kMaxMaps];
  int8_t row[3][kSide * kSide];  // of a plane's pair in its table; -1 if no node needs it
  Axis axis[3];                  // of the grid
  float *cells, *layers, *grid, *blended, *tables;

  static int64_t scratch(const Maps& maps) {
    const int64_t width = maps.job.depth * panels_of(maps.job.hidden) * kPanel;
    const int64_t source = kCells * panels_of(maps.channels) * kPanel;
    return source + width * (2 * kCells + tile_rows(maps.job) + 3 * kPairs);
  }
  Brick(Tile& t, Scratch& memory) : tile(t), maps(t.maps), width(t.shape.depth * t.width) {
    cells = memory.take(kCells * panels_of(maps.channels) * kPanel);
    layers = memory.take(kCells * width);
    grid = memory.take(kCells * width);
    blended = memory.take(tile.capacity * width);
    tables = memory.take(3 * kPairs * width);
  }
  float* table(int k) const { return tables + k * kPairs * width; }
};

int index_along(int32_t node, int axis) { return node >> (3 * (2 - axis)) & 7; }

int pair_of(const Layout& layout, int k, int32_t node) {
  return index_along(node, layout.axes[k][0]) * kSide + index_along(node, layout.axes[k][1]);
}

// Where the nodes are and which are wanted; the others become NaN.
void begin_brick(const DecodeJob& job, int64_t number, Brick& brick) {
  float* out = job.out + number * kNodes;
  brick.shape = job.shape[number];
  brick.wanted = 0;
  for (int axis = 0; axis < 3; ++axis) {
    for (int i = 0; i < kSide; ++i) {
      const double index = static_cast<double>(job.corner[3 * number + axis]) + i;
      brick.place[axis][i] = static_cast<float>(job.origin + job.spacing * index);
    }
  }
  for (int32_t n = 0; n < kNodes; ++n) {
    if (job.mask[number * kSide + n / 64] >> (n % 64) & 1) {
      brick.node[brick.wanted++] = n;
    } else {
      out[n] = bit_cast<float>(0x7fc00000u);
    }
  }
}

// The feature layers of all blocks on the first `rows` of the brick's rows of features of map k, into `out`.
void project_rows(const Brick& brick, int k, int rows, float* out) {
  const Maps& maps = brick.maps;
  const Tile& tile = brick.tile;
  const int64_t channels = maps.channels, stride = panels_of(channels) * kPanel;
  for (; rows % kRowStep; ++rows) memset(brick.cells + rows * stride, 0, channels * sizeof(float));
  const int64_t first = maps.job.concat ? k * channels : 0, width = brick.width;
  const bool pairs = kRounds && first % 2 == 0;  // else the map's weights begin within a pair
  if (pairs) round_rows(brick.cells, rows, stride, channels);
  for (int64_t i = 0; i < tile.shape.depth; ++i) {
    const float* weights = tile.job.weights + tile.shape.feature(i) + first * kPanel;
    Factor factor{brick.cells, stride, weights, channels, tile.shape.features};
    if (pairs) {
      const uint32_t* rounded = tile.job.rounded + tile.pairs.feature(i) + first / 2 * kPanel;
      factor = Factor::of_pairs(brick.cells, stride, rounded, channels, tile.shape.features);
    }
    float* to = out + i * tile.width;
    multiply(rows, tile.shape.hidden, nullptr, factor, kNoFactor,
             [=](int row, int64_t column, Vector sum) { store_simd(to + row * width + column, sum); });
  }
}

// The same on the brick's cells of map k.
template <class T>
void project_cells(const Brick& brick, int k, const Axis* axes, float* out) {
  const Maps& maps = brick.maps;
  const int64_t r = maps.rule[k].resolution, channels = maps.channels, stride = panels_of(channels) * kPanel;
  const int dimensions = maps.rule[k].axes;
  const T* data = maps.data<T>(brick.shape, k);
  int rows = 0;
  for (int32_t z = 0; z < (dimensions == 3 ? axes[2].count : 1); ++z) {
    for (int32_t y = 0; y < axes[1].count; ++y) {
      for (int32_t x = 0; x < axes[0].count; ++x, ++rows) {
        const int64_t plane = dimensions == 3 ? (axes[2].first + z) * r : 0;
        const T* from = data + ((plane + axes[1].first + y) * r + axes[0].first + x) * channels;
        for (int64_t c = 0; c < channels; ++c) brick.cells[rows * stride + c] = from[c];
      }
    }
  }
  project_rows(brick, k, rows, out);
}

// The same on the pairs in use of plane k: sampled first.
template <class T>
void project_pairs(const Brick& brick, int k, const Axis* axes) {
  const Maps& maps = brick.maps;
  const int64_t r = maps.rule[k].resolution, channels = maps.channels, stride = panels_of(channels) * kPanel;
  const T* data = maps.data<T>(brick.shape, k);
  const int64_t* corner = maps.corner[k];
  int rows = 0;
  for (int pair = 0; pair < kSide * kSide; ++pair) {
    if (brick.row[k][pair] < 0) continue;
    const int i = pair / kSide, j = pair % kSide;
    const float upper[2] = {axes[0].upper[i], axes[1].upper[j]};
    float weight[4];
    spread_plain<2>(upper, 1.0f, weight);
    const T* cell = data + ((axes[1].first + axes[1].low[j]) * r + axes[0].first + axes[0].low[i]) * channels;
    float* out = brick.cells + rows++ * stride;
    int64_t c = 0;
    for (; c + kVector <= channels; c += kVector) {
      Vector sum = spread_value(weight[0]) * load_simd<Vector>(cell + corner[0] + c);
      for (int n = 1; n < 4; ++n) {
        sum = multiply_add(spread_value(weight[n]), load_simd<Vector>(cell + corner[n] + c), sum);
      }
      store_simd(out + c, sum);
    }
    for (; c < channels; ++c) {
      out[c] = 0.0f;
      for (int n = 0; n < 4; ++n) out[c] += weight[n] * static_cast<float>(cell[corner[n] + c]);
    }
  }
  project_rows(brick, k, rows, brick.table(k));
}

// Whether projecting `rows` rows pays, `others` being the further work in multiply-adds for each hidden channel.
bool pays(const Brick& brick, int64_t rows, int64_t others) {
  return rows <= kCells && brick.maps.channels * rows + others < brick.maps.channels * brick.wanted;
}

template <class T>
bool project_plane(Brick& brick, int k) {
  const Layout& layout = brick.maps.job.layout;
  const MapRule<float>& rule = brick.maps.rule[k];
  const int first = layout.axes[k][0], second = layout.axes[k][1];
  int8_t* row = brick.row[k];
  memset(row, -1, sizeof(brick.row[k]));
  for (int n = 0; n < brick.wanted; ++n) row[pair_of(layout, k, brick.node[n])] = 0;
  int pairs = 0;
  for (int pair = 0; pair < kSide * kSide; ++pair) {
    if (row[pair] == 0) row[pair] = static_cast<int8_t>(pairs++);
  }
  const Axis axes[2] = {locate_axis(rule, brick.place[first]), locate_axis(rule, brick.place[second])};
  const int64_t cells = static_cast<int64_t>(axes[0].count) * axes[1].count;
  // Sampling a pair's features costs less than sampling its projected rows, by 4 multiply-adds a layer.
  const bool by_cells = cells <= kCells && brick.maps.channels * cells + 4 * pairs < brick.maps.channels * pairs;
  if (!pays(brick, by_cells ? cells : pairs, (by_cells ? 5 * pairs : pairs) + brick.wanted)) return false;
  if (!by_cells) {
    project_pairs<T>(brick, k, axes);
    return true;
  }
  project_cells<T>(brick, k, axes, brick.layers);
  const int64_t across = rule.resolution > 1 ? brick.width : 0, along = across * axes[0].count;
  const int64_t corner[4] = {0, across, along, across + along};
  for (int pair = 0; pair < kSide * kSide; ++pair) {
    if (row[pair] < 0) continue;
    const int i = pair / kSide, j = pair % kSide;
    const float upper[2] = {axes[0].upper[i], axes[1].upper[j]};
    float weight[4];
    spread_plain<2>(upper, 1.0f, weight);
    const float* cell = brick.layers + (axes[0].low[i] + axes[0].count * axes[1].low[j]) * brick.width;
    blend<4>(cell, corner, weight, brick.width, brick.table(k) + row[pair] * brick.width);
  }
  return true;
}

template <class T>
bool project_grid(Brick& brick, int k) {
  for (int axis = 0; axis < 3; ++axis) brick.axis[axis] = locate_axis(brick.maps.rule[k], brick.place[axis]);
  const int64_t cells = static_cast<int64_t>(brick.axis[0].count) * brick.axis[1].count * brick.axis[2].count;
  if (!pays(brick, cells, 10 * brick.wanted)) return false;
  project_cells<T>(brick, k, brick.axis, brick.grid);
  return true;
}

// The grid's projected rows of the tile's nodes.
void blend_grid(const Brick& brick, int k, const int32_t* node, int count) {
  const bool wide = brick.maps.rule[k].resolution > 1;
  const Axis* axes = brick.axis;
  const int64_t steps[3] = {1, axes[0].count, static_cast<int64_t>(axes[0].count) * axes[1].count};
  int64_t corner[8];
  for (int c = 0; c < 8; ++c) {
    corner[c] = 0;
    for (int axis = 0; axis < 3; ++axis) corner[c] += wide && (c >> axis & 1) ? steps[axis] * brick.width : 0;
  }
  for (int q = 0; q < count; ++q) {
    float upper[3], weight[8];
    int64_t cell = 0;
    for (int axis = 0; axis < 3; ++axis) {
      const int i = index_along(node[q], axis);
      upper[axis] = axes[axis].upper[i];
      cell += steps[axis] * axes[axis].low[i];
    }
    spread_plain<3>(upper, 1.0f, weight);
    blend<8>(brick.grid + cell * brick.width, corner, weight, brick.width, brick.blended + q * brick.width);
  }
}

// Rows of the tile's nodes in every projected map. Rows beyond the nodes repeat the first one's.
void point_at_rows(const Brick& brick, const int32_t* node, int count, Projected& projected) {
  projected.maps = 0;
  for (int k = 0; k < brick.maps.count; ++k) {
    if (!brick.projected[k]) continue;
    const bool grid = k >= brick.maps.planes;
    if (grid) blend_grid(brick, k, node, count);
    for (int q = 0; q < brick.tile.rows; ++q) {
      const int from = q < count ? q : 0;
      projected.row[projected.maps][q] =
          grid ? brick.blended + from * brick.width
               : brick.table(k) + brick.row[k][pair_of(brick.maps.job.layout, k, node[from])] * brick.width;
    }
    ++projected.maps;
  }
}

template <class T>
void decode_brick(Brick& brick, float* out) {
  Tile& tile = brick.tile;
  const Maps& maps = brick.maps;
  const bool static_maps = maps.job.layout.dynamic == 0 && tile.shape.depth > 0;
  int sampled = 0;
  for (int k = 0; k < maps.count; ++k) {
    brick.projected[k] = static_maps && (k < maps.planes ? project_plane<T>(brick, k) : project_grid<T>(brick, k));
    sampled += !brick.projected[k];
  }
  tile.sampled = sampled > 0;
  float logits[kTileRows];
  Spots& spots = tile.spots[0];
  Projected projected;
  for (int first = 0; first < brick.wanted; first += static_cast<int>(tile.capacity)) {
    const int32_t* node = brick.node + first;
    const int left = brick.wanted - first, count = left < tile.capacity ? left : static_cast<int>(tile.capacity);
    for (int q = 0; q < count; ++q) {
      for (int axis = 0; axis < 3; ++axis) spots.columns.at[axis][q] = brick.place[axis][index_along(node[q], axis)];
    }
    if (sampled) {
      locate_all(maps, brick.shape, count, spots);
    } else {
      fill_places(spots, count);
    }
    begin_rows(tile, spots);
    if (sampled) gather_features<T>(tile, spots, brick.projected);
    point_at_rows(brick, node, count, projected);
    forward(tile, projected.maps ? &projected : nullptr, [](int, int) {});
    head(tile, count, logits);
    for (int q = 0; q < count; ++q) out[node[q]] = logits[q];
  }
}

}  // namespace

void run_decode_bricks(const DecodeJob& job) {
  with_feature_type(job.dtype, [&](auto type) {
    const Maps maps(job);
    parallel_blocks(job.threads, job.bricks, kTask, [&](int64_t begin, int64_t end) {
      Scratch memory(Tile::scratch(maps) + Brick::scratch(maps));
      if (!memory) {
        *job.failed = true;
        return;
      }
      Tile tile(maps, memory);
      Brick brick(tile, memory);
      for (int64_t number = begin; number < end; ++number) {
        begin_brick(job, number, brick);
        if (brick.wanted) decode_brick<typename decltype(type)::type>(brick, job.out + number * kNodes);
      }
    });
  });
}

}  // namespace OCC_ISA
}  // namespace occ::cpu

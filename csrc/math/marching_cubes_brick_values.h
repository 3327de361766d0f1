// SPDX-License-Identifier: MIT
// Sparse marching cubes, the part that reads values: vertices, normals, attributes, derivatives. See
// marching_cubes_bricks.h for the bricks and marching_cubes_edges.h for what a vertex passes on.
#pragma once

#include <cstdint>
#include <limits>

#include "common/macros.h"
#include "common/types.h"
#include "math/marching_cubes_bricks.h"
#include "math/marching_cubes_edges.h"

namespace occ::mc {
OCC_BEGIN_SHARED

// Values by node.
template <class T>
struct BrickField {
  using S = acc_t<T>;
  Bricks bricks;
  const T* data;
  S outside;

  OCC_HD BrickField(const Bricks& all, const BrickValues& values)
      : bricks(all), data(static_cast<const T*>(values.data)), outside(static_cast<S>(values.pad_value)) {}

  // Element of the values that a node is, -1 where it lies outside of the lattice, -2 where it cannot be known.
  OCC_HD int64_t element(const BrickNode& node) const {
    if (node.brick < 0) return -2;
    const int64_t row = bricks.source == nullptr ? node.brick : bricks.source[node.brick];
    if (row >= 0) return row * kBrickNodes + 64 * node.word + node.bit;
    int64_t place[3];
    brick_place(bricks, node.brick, place);
    const int within[3] = {node.word, node.bit >> 3, node.bit & 7};
    bool outer = false;
    for (int axis = 0; axis < 3; ++axis) {
      place[axis] += within[axis];
      if (place[axis] < -1 || place[axis] > bricks.nodes) return -2;
      outer |= place[axis] == -1 || place[axis] == bricks.nodes;
    }
    if (outer) return -1;
    return row == -1 ? -2 : (-2 - row) * kBrickNodes + 64 * node.word + node.bit;
  }

  OCC_HD S operator()(const BrickNode& node) const {
    const int64_t at = element(node);
    return at >= 0 ? static_cast<S>(data[at]) : at == -1 ? outside : std::numeric_limits<S>::quiet_NaN();
  }
};

// Differences along the axes: central where both neighbours are known, one-sided where one is, else 0.
template <class T>
OCC_HD inline void brick_gradient(const BrickField<T>& field, const BrickNode& node, acc_t<T> out[3]) {
  using S = acc_t<T>;
  const S here = field(node);
  for (int axis = 0; axis < 3; ++axis) {
    const S before = field(node_before(field.bricks, node, axis)), after = field(node_after(field.bricks, node, axis));
    const bool has_before = before == before, has_after = after == after;
    out[axis] = difference(has_before ? before : here, has_after ? after : here, int64_t{has_before} + has_after);
  }
}

// Writes vertex number `vertex`, on the edge that leaves `node` along `axis`; `place` is the node's in the lattice.
template <class T>
OCC_HD inline void emit_brick_vertex(const BrickField<T>& field, const BrickNode& node, const int64_t place[3],
                                     int axis, acc_t<T> level, acc_t<T> margin, const VertexTarget& target,
                                     int64_t vertex) {
  using S = acc_t<T>;
  const BrickNode end = node_after(field.bricks, node, axis);
  const S a = field(node), b = field(end);
  const S t = crossing(a, b, level, margin);
  S* position = static_cast<S*>(target.positions) + 3 * vertex;
  for (int i = 0; i < 3; ++i) {
    const S whole = static_cast<S>(place[i]);
    position[i] = i == axis ? whole + t : whole;
  }
  if (target.normals != nullptr) {
    S from[3], to[3];
    brick_gradient(field, node, from);
    brick_gradient(field, end, to);
    outward_normal(from, to, t, axis, b > a, static_cast<S*>(target.normals) + 3 * vertex);
  }
  if (target.attributes == nullptr) return;
  blend(static_cast<const T*>(target.source), target.channels, field.element(node), field.element(end), t,
        static_cast<S*>(target.attributes) + target.channels * vertex);
}

// Nodes of word x of a brick at which a vertex's edge begins or ends.
OCC_HD inline uint64_t brick_nodes_with_edges(const Bricks& bricks, int64_t brick, int x) {
  const int32_t* neighbours = bricks.neighbours + brick * kNeighbours;
  const Crossings own = stored_crossings(brick_words(bricks, brick), x);
  return own.x | own.y | own.z | word_or_none(bricks, x > 0 ? brick : neighbours[7 + 4], kEdges + ((x - 1) & 7)) |
         before_y(own.y, word_or_none(bricks, neighbours[7 + 2], kEdges + 8 + x)) |
         before_z(own.z, word_or_none(bricks, neighbours[7 + 1], kEdges + 16 + x));
}

// The derivatives to a node found by brick_nodes_with_edges. Nothing is written for a node outside of the lattice.
template <class T>
OCC_HD inline void gather_brick(const BrickField<T>& field, const int64_t* vertex_bricks, const BrickNode& node,
                                const VertexGradient& gradient, acc_t<T> level, acc_t<T> margin) {
  using S = acc_t<T>;
  const int64_t element = field.element(node);
  if (element < 0) return;
  IncidentEdge<S> edges[6];
  int count = 0;
  for (int upper = 1; upper >= 0; --upper) {
    for (int axis = 0; axis < 3; ++axis) {
      const BrickNode other = upper == 1 ? node_after(field.bricks, node, axis) : node_before(field.bricks, node, axis);
      const BrickNode low = upper == 1 ? node : other;
      if (low.brick < 0) continue;
      const Crossings crossed = stored_crossings(brick_words(field.bricks, low.brick), low.word);
      const uint64_t axes[3] = {crossed.x, crossed.y, crossed.z};
      if ((axes[axis] >> low.bit & 1) == 0) continue;
      int64_t vertex = first_vertex(field.bricks, vertex_bricks, low, crossed);
      for (int earlier = 0; earlier < axis; ++earlier) vertex += static_cast<int64_t>(axes[earlier] >> low.bit & 1);
      edges[count++] = {vertex, field.element(other), field(other), axis, upper == 1};
    }
  }
  gather_node<T>(gradient, edges, count, element, field(node), level, margin);
}

OCC_END_SHARED
}  // namespace occ::mc

// SPDX-License-Identifier: MIT
// What a vertex passes on: values carried along its edge (attributes), and derivatives back to the two nodes of the
// edge. A vertex lies on one edge, so a node's derivative is a sum over the at most six edges that meet there; whoever
// owns the node adds them up, in a fixed order and without atomics.
#pragma once

#include <cstdint>

#include "common/macros.h"
#include "common/types.h"
#include "math/marching_cubes.h"

namespace occ::mc {

// Where vertices are written: positions (V, 3), normals (V, 3) or null, attributes (V, channels) or null. `source`
// holds the attributes of the nodes, of the volume's type.
struct VertexTarget {
  void *positions, *normals, *attributes;
  const void* source;
  int64_t channels;
};

// Derivatives with respect to the vertices (positions, attributes or null) and where those of the nodes go (values, of
// the volume's type, and attributes). `source` and `channels` as above.
struct VertexGradient {
  const void *positions, *attributes;
  const void* source;
  int64_t channels;
  void *values, *node_attributes;
};

OCC_BEGIN_SHARED

// Attributes at `t` between two nodes (rows of `source`). A node outside of the lattice, below 0, has none of its own
// and takes those of the other.
template <class T>
OCC_HD inline void blend(const T* source, int64_t channels, int64_t low, int64_t high, acc_t<T> t, acc_t<T>* out) {
  using S = acc_t<T>;
  const T* from = source + (low < 0 ? high : low) * channels;
  const T* to = source + (high < 0 ? low : high) * channels;
  for (int64_t c = 0; c < channels; ++c) out[c] = static_cast<S>(from[c]) * (S(1) - t) + static_cast<S>(to[c]) * t;
}

// An edge as one of its nodes sees it: its vertex, its axis, the other node's value and row of attributes, and whether
// that node is the upper one.
template <class S>
struct IncidentEdge {
  int64_t vertex, other;
  S value;
  int axis;
  bool other_is_upper;
};

// Derivative of crossing() to the value of this end; 0 where the margin holds the vertex or a value is infinite.
template <class S>
OCC_HD inline S crossing_slope(S a, S b, S level, S margin, bool of_lower) {
  const S span = b - a;
  if (!is_finite(span)) return S(0);
  const S t = (level - a) / span;
  if (t < margin || t > S(1) - margin) return S(0);
  return (of_lower ? t - S(1) : -t) / span;
}

// Writes the derivatives to one node's value and attributes. `node`: its row in both.
template <class T>
OCC_HD inline void gather_node(const VertexGradient& gradient, const IncidentEdge<acc_t<T>>* edges, int count,
                               int64_t node, acc_t<T> value, acc_t<T> level, acc_t<T> margin) {
  using S = acc_t<T>;
  const S* by_position = static_cast<const S*>(gradient.positions);
  const S* by_attribute = static_cast<const S*>(gradient.attributes);
  const T* source = static_cast<const T*>(gradient.source);
  const int64_t channels = by_attribute == nullptr ? 0 : gradient.channels;
  S sum = 0, weights[6];
  for (int e = 0; e < count; ++e) {
    const IncidentEdge<S>& edge = edges[e];
    const S a = edge.other_is_upper ? value : edge.value, b = edge.other_is_upper ? edge.value : value;
    const S t = crossing(a, b, level, margin);
    weights[e] = edge.other < 0 ? S(1) : edge.other_is_upper ? S(1) - t : t;
    S along = by_position[3 * edge.vertex + edge.axis];
    if (edge.other >= 0) {
      const T* low = source + (edge.other_is_upper ? node : edge.other) * channels;
      const T* high = source + (edge.other_is_upper ? edge.other : node) * channels;
      for (int64_t c = 0; c < channels; ++c) {
        along += (static_cast<S>(high[c]) - static_cast<S>(low[c])) * by_attribute[edge.vertex * channels + c];
      }
    }
    sum += along * crossing_slope(a, b, level, margin, edge.other_is_upper);
  }
  static_cast<T*>(gradient.values)[node] = static_cast<T>(sum);
  for (int64_t c = 0; c < channels; ++c) {
    S total = 0;
    for (int e = 0; e < count; ++e) total += weights[e] * by_attribute[edges[e].vertex * channels + c];
    static_cast<T*>(gradient.node_attributes)[node * channels + c] = static_cast<T>(total);
  }
}

// ------------------------------------------------------------------------------------------------- dense volumes

// Writes vertex number `vertex`, on the edge that leaves `node` of volume b along `axis`.
template <class T>
OCC_HD inline void emit_vertex(const Field<T>& field, int64_t b, const int64_t node[3], int axis, acc_t<T> level,
                               acc_t<T> margin, const VertexTarget& target, int64_t vertex) {
  using S = acc_t<T>;
  S* normal = target.normals == nullptr ? nullptr : static_cast<S*>(target.normals) + 3 * vertex;
  const S t = place_vertex(field, node, axis, level, margin, static_cast<S*>(target.positions) + 3 * vertex, normal);
  if (target.attributes == nullptr) return;
  const int64_t low = field.element(b, node[0], node[1], node[2]);
  const int64_t high = field.element(b, node[0] + (axis == 0), node[1] + (axis == 1), node[2] + (axis == 2));
  blend(static_cast<const T*>(target.source), target.channels, low, high, t,
        static_cast<S*>(target.attributes) + target.channels * vertex);
}

// Index of the first vertex that node `64 word + bit` of a row owns (or would own).
OCC_HD inline int64_t first_vertex(const SignGrid& grid, const int64_t* vertex_rows, const Row& row, int64_t word,
                                   int bit) {
  const RowSigns signs = row_signs(grid, row);
  int64_t first = vertex_rows[row.index];
  for (int64_t w = 0; w < word; ++w) first += vertex_count(crossings(grid, signs, w));
  const Crossings crossed = crossings(grid, signs, word);
  const uint64_t below = (uint64_t{1} << bit) - 1;
  return first + popcount(crossed.x & below) + popcount(crossed.y & below) + popcount(crossed.z & below);
}

OCC_HD inline uint64_t axis_of(const Crossings& crossed, int axis) {
  return axis == 0 ? crossed.x : axis == 1 ? crossed.y : crossed.z;
}

// Nodes of a word at which a crossed edge begins or ends.
OCC_HD inline uint64_t nodes_with_edges(const SignGrid& grid, const Row& row, int64_t word) {
  const RowSigns signs = row_signs(grid, row);
  const Crossings own = crossings(grid, signs, word);
  uint64_t result = own.x | own.y | own.z | own.z << 1;
  if (word > 0) result |= crossings(grid, signs, word - 1).z >> 63;
  const uint64_t* here = signs.here + word;
  if (row.x > 0) result |= *here ^ *(here - grid.ny * grid.row_words);
  if (row.y > 0) result |= *here ^ *(here - grid.row_words);
  return result;
}

// The derivatives to a node of a word, found by nodes_with_edges. Nothing is written for a node of the padding.
template <class T>
OCC_HD inline void gather_dense(const SignGrid& grid, const Field<T>& field, const int64_t* vertex_rows, const Row& row,
                                int64_t word, int bit, const VertexGradient& gradient, acc_t<T> level,
                                acc_t<T> margin) {
  using S = acc_t<T>;
  const int64_t place[3] = {row.x, row.y, 64 * word + bit};
  const int64_t node = field.element(row.b, place[0], place[1], place[2]);
  if (node < 0) return;
  const Crossings own = crossings(grid, row_signs(grid, row), word);
  const S value = field(place[0], place[1], place[2]);
  IncidentEdge<S> edges[6];
  int count = 0;
  int64_t next = -1;
  for (int axis = 0; axis < 3; ++axis) {  // edges that leave the node: their vertices follow each other
    if ((axis_of(own, axis) >> bit & 1) == 0) continue;
    if (next < 0) next = first_vertex(grid, vertex_rows, row, word, bit);
    int64_t at[3] = {place[0], place[1], place[2]};
    ++at[axis];
    edges[count++] = {next++, field.element(row.b, at[0], at[1], at[2]), field(at[0], at[1], at[2]), axis, true};
  }
  for (int axis = 0; axis < 3; ++axis) {  // edges that end at it
    if (place[axis] == 0) continue;
    int64_t at[3] = {place[0], place[1], place[2]};
    --at[axis];
    const Row lower = neighbour(grid, row, axis == 0 ? -1 : 0, axis == 1 ? -1 : 0);
    const int64_t lower_word = at[2] / 64;
    const int lower_bit = static_cast<int>(at[2] % 64);
    const Crossings crossed = crossings(grid, row_signs(grid, lower), lower_word);
    if ((axis_of(crossed, axis) >> lower_bit & 1) == 0) continue;
    int64_t vertex = first_vertex(grid, vertex_rows, lower, lower_word, lower_bit);
    for (int before = 0; before < axis; ++before) {
      vertex += static_cast<int64_t>(axis_of(crossed, before) >> lower_bit & 1);
    }
    edges[count++] = {vertex, field.element(row.b, at[0], at[1], at[2]), field(at[0], at[1], at[2]), axis, false};
  }
  gather_node<T>(gradient, edges, count, node, value, level, margin);
}

OCC_END_SHARED
}  // namespace occ::mc

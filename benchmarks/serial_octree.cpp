// SPDX-License-Identifier: MIT
// The design that the ONet family's serial octree has, written anew for comparison: voxels and points in vectors, a map
// from a point's key to its number, and in every round a visit of all points, each of which looks for the eight voxels
// around it by descending from the root. bench_octree.py compiles it.
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <vector>

namespace {

struct Place {
  long x, y, z;
};

struct Voxel {
  Place corner;
  int level;
  bool leaf;
  long children;  // number of the first of eight
};

struct Point {
  Place place;
  double value;
  bool known;
};

struct Tree {
  long first, depth, size0, resolution;
  double threshold;
  std::vector<Voxel> voxels;
  std::vector<Point> points;
  std::map<long, long> numbers;
  std::vector<long> asked;

  Tree(long initial, long levels, double level)
      : first(initial), depth(levels), size0(1L << levels), resolution(initial << levels), threshold(level) {
    for (long x = 0; x < first; ++x)
      for (long y = 0; y < first; ++y)
        for (long z = 0; z < first; ++z) voxels.push_back({{x * size0, y * size0, z * size0}, 0, true, -1});
    for (long x = 0; x <= first; ++x)
      for (long y = 0; y <= first; ++y)
        for (long z = 0; z <= first; ++z) add_point({x * size0, y * size0, z * size0});
  }

  long key(const Place& p) const { return (p.x * (resolution + 1) + p.y) * (resolution + 1) + p.z; }

  void add_point(const Place& p) {
    if (numbers.find(key(p)) != numbers.end()) return;
    numbers[key(p)] = static_cast<long>(points.size());
    points.push_back({p, 0.0, false});
  }

  long voxel_at(const Place& p) const {
    if (p.x < 0 || p.y < 0 || p.z < 0 || p.x >= resolution || p.y >= resolution || p.z >= resolution) return -1;
    long number = (p.x / size0 * first + p.y / size0) * first + p.z / size0;
    long size = size0;
    while (!voxels[number].leaf) {
      size /= 2;
      const Place& corner = voxels[number].corner;
      const long dx = (p.x - corner.x) / size, dy = (p.y - corner.y) / size, dz = (p.z - corner.z) / size;
      number = voxels[number].children + 4 * dx + 2 * dy + dz;
    }
    return number;
  }

  void split(long number) {
    const Place corner = voxels[number].corner;
    const int level = voxels[number].level + 1;
    const long size = size0 >> level;
    voxels[number].leaf = false;
    voxels[number].children = static_cast<long>(voxels.size());
    for (long x = 0; x < 2; ++x)
      for (long y = 0; y < 2; ++y)
        for (long z = 0; z < 2; ++z)
          voxels.push_back({{corner.x + x * size, corner.y + y * size, corner.z + z * size}, level, true, -1});
    for (long x = 0; x < 3; ++x)
      for (long y = 0; y < 3; ++y)
        for (long z = 0; z < 3; ++z) add_point({corner.x + x * size, corner.y + y * size, corner.z + z * size});
  }

  void refine() {
    const size_t count = voxels.size();
    std::vector<bool> above(count, false), below(count, false);
    for (const Point& point : points) {
      if (!point.known) continue;
      for (long offset = 0; offset < 8; ++offset) {
        const Place& p = point.place;
        const long number = voxel_at({p.x - (offset >> 2), p.y - (offset >> 1 & 1), p.z - (offset & 1)});
        if (number < 0) continue;
        if (point.value >= threshold) above[number] = true;
        if (point.value <= threshold) below[number] = true;
      }
    }
    for (size_t number = 0; number < count; ++number) {
      if (voxels[number].leaf && voxels[number].level < depth && above[number] && below[number])
        split(static_cast<long>(number));
    }
  }
};

}  // namespace

extern "C" {

void* octree_new(int64_t initial, int64_t levels, double threshold) { return new Tree(initial, levels, threshold); }
void octree_delete(void* tree) { delete static_cast<Tree*>(tree); }

int64_t octree_count(void* handle) {
  Tree& tree = *static_cast<Tree*>(handle);
  tree.asked.clear();
  for (size_t i = 0; i < tree.points.size(); ++i) {
    if (!tree.points[i].known) tree.asked.push_back(static_cast<long>(i));
  }
  return static_cast<int64_t>(tree.asked.size());
}

void octree_query(void* handle, int64_t* out) {
  const Tree& tree = *static_cast<Tree*>(handle);
  for (const long i : tree.asked) {
    *out++ = tree.points[i].place.x;
    *out++ = tree.points[i].place.y;
    *out++ = tree.points[i].place.z;
  }
}

void octree_update(void* handle, const int64_t* points, const double* values, int64_t count) {
  Tree& tree = *static_cast<Tree*>(handle);
  for (int64_t i = 0; i < count; ++i) {
    Point& point = tree.points[tree.numbers.at(tree.key({points[3 * i], points[3 * i + 1], points[3 * i + 2]}))];
    point.value = values[i];
    point.known = true;
  }
  tree.refine();
}

void octree_dense(void* handle, double* out) {
  const Tree& tree = *static_cast<Tree*>(handle);
  const long n = tree.resolution + 1;
  for (long i = 0; i < n * n * n; ++i) out[i] = std::numeric_limits<double>::quiet_NaN();
  for (const Point& point : tree.points) out[tree.key(point.place)] = point.value;
  const long strides[3] = {n * n, n, 1};
  for (int axis = 0; axis < 3; ++axis) {
    for (long x = 0; x < n; ++x)
      for (long y = 0; y < n; ++y)
        for (long z = 0; z < n; ++z) {
          const long at[3] = {x, y, z}, i = (x * n + y) * n + z;
          if (at[axis] > 0 && std::isnan(out[i])) out[i] = out[i - strides[axis]];
        }
  }
}
}

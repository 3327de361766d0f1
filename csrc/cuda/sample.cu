// SPDX-License-Identifier: MIT
// Weighted gather, its contraction with a gradient, and its transpose.
//   gather, contract: `lanes` neighbouring lanes a query (8 for 32 float channels), 16 bytes of channels a lane, so
//   that the
//     corners are read as whole lines. Every lane works out the weights itself; that is cheaper than sharing them.
//   scatter: a warp a node; groups of lanes take the queries of the node's cells in turn and are added up at the end in
//   a
//     fixed order.
#include "cuda/sample.h"
#include "cuda/sample_device.h"

namespace occ::cuda {
namespace {

// Adds the corners of one query in map k, for channels [c, c + N).
template <class T, int D, int N, int TERMS>
OCC_DEVICE void add_map(const SampleDevice<T>& job, const T* data, int k, int64_t b, int64_t m, int64_t c,
                        acc_t<T> (*sum)[N]) {
  using S = acc_t<T>;
  const Spot<S> spot = locate(job, k, b, m);
  const T* cell = data + node_of<D>(job.rule[k], spot) * job.channels + c;
  S weights[TERMS][1 << D];
  for (int term = 0; term < TERMS; ++term) corner_weights<T, D>(job, k, b, m, term, spot, weights[term]);
#pragma unroll
  for (int corner = 0; corner < 1 << D; ++corner) {
    S value[N];
    load_chunk<T, N>(cell + corner_offset<D>(job.rule[k], corner, job.channels), value);
    for (int term = 0; term < TERMS; ++term) {
      for (int i = 0; i < N; ++i) sum[term][i] += weights[term][corner] * value[i];
    }
  }
}

template <class T, int N, int TERMS>
OCC_KERNEL void __launch_bounds__(kSampleThreads) gather_kernel(SampleDevice<T> job, T* out, int lanes) {
  using S = acc_t<T>;
  OCC_GRID_STRIDE(thread, job.batch * job.queries * lanes) {
    const int64_t row = thread / lanes, b = row / job.queries, m = row - b * job.queries;
    for (int64_t c = thread % lanes * N; c < job.channels; c += lanes * N) {
      S sum[TERMS][N] = {};
      T* to = out + row * TERMS * job.width + c;
      for (int k = 0; k < job.maps; ++k) {
        const T* data = job.map_data(job.planes, job.grid, b, k);
        if (data != nullptr && k < job.num_planes) add_map<T, 2, N, TERMS>(job, data, k, b, m, c, sum);
        if (data != nullptr && k >= job.num_planes) add_map<T, 3, N, TERMS>(job, data, k, b, m, c, sum);
        if (job.concat || k + 1 == job.maps) {
          for (int term = 0; term < TERMS; ++term) {
            store_chunk<T, N>(to + term * job.width + (job.concat ? k * job.channels : 0), sum[term]);
            for (int i = 0; i < N; ++i) sum[term][i] = S(0);
          }
        }
      }
    }
  }
}

// Adds map k's part of the gradient of one query; all `lanes` lanes call it, lane 0 of them writes.
template <class T, int D, int N>
OCC_DEVICE void contract_map(const SampleDevice<T>& job, const T* data, int k, int64_t b, int64_t m, int terms,
                             int lane, int lanes, bool exists, acc_t<T>* out) {
  using S = acc_t<T>;
  const Spot<S> spot = locate(job, k, b, m);
  const T* cell = data + node_of<D>(job.rule[k], spot) * job.channels;
  for (int term = 0; term < terms; ++term) {
    const T* grad = job.grad + ((b * job.queries + m) * terms + term) * job.width + (job.concat ? k * job.channels : 0);
    S dots[1 << D] = {};
    for (int64_t c = lane * N; c < job.channels; c += lanes * N) {
      S g[N];
      load_chunk<T, N>(grad + c, g);
#pragma unroll
      for (int corner = 0; corner < 1 << D; ++corner) {
        S value[N];
        load_chunk<T, N>(cell + corner_offset<D>(job.rule[k], corner, job.channels) + c, value);
        for (int i = 0; i < N; ++i) dots[corner] += g[i] * value[i];
      }
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      for (int corner = 0; corner < 1 << D; ++corner) dots[corner] += shuffle_xor(dots[corner], distance);
    }
    if (lane == 0 && exists) {
      S kinds[1 << D];
      term_kinds<T, D>(job, k, b, m, term, kinds);
      collect<D>(spot.upper, spot.slope, dots);
      for (int axis = 0; axis < D; ++axis) out[job.rule[k].columns[axis]] += derivative_along<D>(axis, kinds, dots);
    }
  }
}

template <class T, int N>
OCC_KERNEL void __launch_bounds__(kSampleThreads)
    contract_kernel(SampleDevice<T> job, acc_t<T>* out, int lanes, int terms) {
  const int64_t count = job.batch * job.queries;
  // Whole warps stay together for the shuffles: lanes beyond the last query repeat it and write nothing.
  OCC_GRID_STRIDE(thread, (count * lanes + kWarp - 1) / kWarp * kWarp) {
    const bool exists = thread / lanes < count;
    const int64_t row = exists ? thread / lanes : count - 1;
    const int64_t b = row / job.queries, m = row - b * job.queries;
    const int lane = static_cast<int>(thread % lanes);
    acc_t<T>* to = out + row * job.columns;
    if (lane == 0 && exists) {
      for (int column = 0; column < job.columns; ++column) to[column] = acc_t<T>(0);
    }
    for (int k = 0; k < job.maps; ++k) {
      const T* data = job.map_data(job.planes, job.grid, b, k);
      if (data == nullptr) continue;
      if (k < job.num_planes) {
        contract_map<T, 2, N>(job, data, k, b, m, terms, lane, lanes, exists, to);
      } else {
        contract_map<T, 3, N>(job, data, k, b, m, terms, lane, lanes, exists, to);
      }
    }
  }
}

template <class T>
OCC_KERNEL void __launch_bounds__(kSampleThreads) index_kernel(SampleDevice<T> job, int32_t* index) {
  OCC_GRID_STRIDE(i, job.batch * job.maps * job.queries) {
    const int64_t row = i / job.queries, m = i - row * job.queries, b = row / job.maps;
    const int k = static_cast<int>(row - b * job.maps);
    const Spot<acc_t<T>> spot = locate(job, k, b, m);
    const int64_t node = k < job.num_planes ? node_of<2>(job.rule[k], spot) : node_of<3>(job.rule[k], spot);
    index[i] = static_cast<int32_t>(node);
  }
}

// The queries of one map sorted by cell, and where the map's nodes go.
template <class S>
struct Target {
  const int32_t *order, *offsets;
  S* out;
  int64_t sample_offsets;  // entries of `offsets` of one sample
  int64_t sample_nodes;    // nodes of one sample in `out`
  int map;
};

// Adds the queries of the cell at `low` whose corner `corner` is the node, for channels [c, c + N); every groups-th
// query.
template <class T, int D, int N>
OCC_DEVICE void add_cell(const SampleDevice<T>& job, const Target<acc_t<T>>& target, int64_t b, const int32_t* low,
                         int corner, int terms, int group, int groups, int64_t c, acc_t<T>* sum) {
  using S = acc_t<T>;
  const int k = target.map;
  const auto& rule = job.rule[k];
  Spot<S> spot;
  for (int axis = 0; axis < D; ++axis) spot.low[axis] = low[axis];
  const int64_t cell = node_of<D>(rule, spot);
  const int32_t* starts = target.offsets + b * target.sample_offsets;
  const int32_t* order = target.order + b * job.maps * job.queries;
  for (int32_t i = starts[cell] + group; i < starts[cell + 1]; i += groups) {
    const int64_t m = order[i];
    const S* coords = job.coords + (b * job.queries + m) * job.columns;
    for (int axis = 0; axis < D; ++axis) {
      const S u = position_of(rule, coords[rule.columns[axis]], spot.slope[axis]);
      spot.upper[axis] = u - static_cast<S>(low[axis]);
    }
    const T* grad = job.grad + (b * job.queries + m) * terms * job.width + (job.concat ? k * job.channels : 0) + c;
    for (int term = 0; term < terms; ++term) {
      S weights[1 << D], g[N];
      corner_weights<T, D>(job, k, b, m, term, spot, weights);
      S weight = weights[0];
#pragma unroll
      for (int other = 1; other < 1 << D; ++other) weight = other == corner ? weights[other] : weight;
      load_chunk<T, N>(grad + term * job.width, g);
      for (int j = 0; j < N; ++j) sum[j] += weight * g[j];
    }
  }
}

template <class T, int D, int N>
OCC_KERNEL void __launch_bounds__(kSampleThreads)
    scatter_kernel(SampleDevice<T> job, Target<acc_t<T>> target, int64_t nodes, int lanes, int terms) {
  using S = acc_t<T>;
  const int r = job.rule[target.map].resolution, last = job.rule[target.map].last_cell;
  const int lane = lane_id() % lanes, group = lane_id() / lanes, groups = kWarp / lanes;
  OCC_GRID_STRIDE(thread, job.batch * nodes * kWarp) {
    const int64_t b = thread / kWarp / nodes, node = thread / kWarp - b * nodes;
    const int32_t place[3] = {static_cast<int32_t>(node % r), static_cast<int32_t>(node / r % r),
                              static_cast<int32_t>(node / r / r)};
    S* to = target.out + (b * target.sample_nodes + node) * job.channels;
    for (int64_t base = 0; base < job.channels; base += lanes * N) {  // the same for the whole warp
      const int64_t c = base + lane * N;
      S sum[N] = {};
      for (int corner = 0; corner < 1 << D; ++corner) {
        int32_t low[3] = {};
        bool exists = c < job.channels;
        for (int axis = 0; axis < D; ++axis) {
          low[axis] = place[axis] - (r > 1 ? corner >> axis & 1 : 0);
          exists = exists && low[axis] >= 0 && low[axis] <= last;
        }
        if (exists) add_cell<T, D, N>(job, target, b, low, corner, terms, group, groups, c, sum);
      }
      for (int distance = lanes; distance < kWarp; distance *= 2) {
        for (int i = 0; i < N; ++i) sum[i] += shuffle_xor(sum[i], distance);
      }
      if (group == 0 && c < job.channels) store_chunk<S, N>(to + c, sum);
    }
  }
}

template <class T>
SampleDevice<T> make_job(const void* coords, int64_t batch, int64_t queries, int64_t channels, bool concat,
                         const Layout& layout) {
  SampleDevice<T> job = {};
  job.coords = static_cast<const acc_t<T>*>(coords);
  job.batch = batch;
  job.queries = queries;
  job.channels = channels;
  job.columns = 3 + 2 * layout.dynamic;
  job.maps = layout.maps();
  job.num_planes = layout.planes();
  job.concat = concat;
  job.width = concat ? job.maps * channels : channels;
  SampleMap maps[kMaxMaps];
  sample_maps(layout, maps);
  for (int k = 0; k < job.maps; ++k) job.rule[k] = MapRule<acc_t<T>>(maps[k]);
  return job;
}

template <class T>
void set_directions(SampleDevice<T>& job, const void* directions, const void* frame, int num_directions) {
  job.directions = static_cast<const acc_t<T>*>(directions);
  job.frame = static_cast<const acc_t<T>*>(frame);
  job.num_directions = num_directions;
}

// Calls fn(tag<char[N]>) with the elements a lane moves at once.
template <class T, class F>
void with_chunk(int64_t channels, F&& fn) {
  if (channels % kChunk<T> == 0) {
    fn(tag<char[kChunk<T>]>{});
  } else {
    fn(tag<char[1]>{});
  }
}

template <class T>
void gather(const SampleDevice<T>& job, T* out, Stream stream) {
  with_chunk<T>(job.channels, [&](auto size) {
    constexpr int N = sizeof(typename decltype(size)::type);
    const int lanes = lanes_for(job.channels, N);
    const unsigned blocks = grid_for(job.batch * job.queries * lanes, kSampleThreads);
    if (job.frame) {
      OCC_LAUNCH((gather_kernel<T, N, 4>), blocks, kSampleThreads, 0, stream, job, out, lanes);
    } else {
      OCC_LAUNCH((gather_kernel<T, N, 1>), blocks, kSampleThreads, 0, stream, job, out, lanes);
    }
  });
}

template <class T>
void contract(const SampleDevice<T>& job, acc_t<T>* out, Stream stream) {
  with_chunk<T>(job.channels, [&](auto size) {
    constexpr int N = sizeof(typename decltype(size)::type);
    const int lanes = lanes_for(job.channels, N);
    const unsigned blocks = grid_for(job.batch * job.queries * lanes, kSampleThreads);
    OCC_LAUNCH((contract_kernel<T, N>), blocks, kSampleThreads, 0, stream, job, out, lanes, job.frame ? 4 : 1);
  });
}

template <class T>
void scatter(const SampleDevice<T>& job, const int32_t* order, const int32_t* offsets, acc_t<T>* planes, acc_t<T>* grid,
             Stream stream) {
  int64_t starts[kMaxMaps + 1] = {};
  for (int k = 0; k < job.maps; ++k) {
    const int64_t r = job.rule[k].resolution;
    starts[k + 1] = starts[k] + r * r * (k < job.num_planes ? 1 : r) + 1;
  }
  with_chunk<T>(job.channels, [&](auto size) {
    constexpr int N = sizeof(typename decltype(size)::type);
    const int lanes = lanes_for(job.channels, N);
    for (int k = 0; k < job.maps; ++k) {
      acc_t<T>* out = job.map_data(planes, grid, 0, k);
      if (out == nullptr) continue;
      const int64_t nodes = starts[k + 1] - starts[k] - 1;
      const bool plane = k < job.num_planes;
      const Target<acc_t<T>> target{
          order + k * job.queries, offsets + starts[k], out, starts[job.maps], nodes * (plane ? job.num_planes : 1), k};
      const unsigned blocks = grid_for(job.batch * nodes * kWarp, kSampleThreads);
      if (plane) {
        OCC_LAUNCH((scatter_kernel<T, 2, N>), blocks, kSampleThreads, 0, stream, job, target, nodes, lanes,
                   job.frame ? 4 : 1);
      } else {
        OCC_LAUNCH((scatter_kernel<T, 3, N>), blocks, kSampleThreads, 0, stream, job, target, nodes, lanes,
                   job.frame ? 4 : 1);
      }
    }
  });
}

}  // namespace

void sample_gather(const void* planes, const void* grid, const void* coords, const void* directions, const void* frame,
                   void* out, int dtype, int64_t batch, int64_t queries, int64_t channels, int num_directions,
                   bool concat, const Layout& layout, uintptr_t stream) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    SampleDevice<T> job = make_job<T>(coords, batch, queries, channels, concat, layout);
    set_directions(job, directions, frame, num_directions);
    job.planes = static_cast<const T*>(planes);
    job.grid = static_cast<const T*>(grid);
    gather(job, static_cast<T*>(out), stream);
  });
}

void sample_contract(const void* planes, const void* grid, const void* coords, const void* grad, const void* directions,
                     const void* frame, void* out, int dtype, int64_t batch, int64_t queries, int64_t channels,
                     int num_directions, bool concat, const Layout& layout, uintptr_t stream) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    SampleDevice<T> job = make_job<T>(coords, batch, queries, channels, concat, layout);
    set_directions(job, directions, frame, num_directions);
    job.planes = static_cast<const T*>(planes);
    job.grid = static_cast<const T*>(grid);
    job.grad = static_cast<const T*>(grad);
    contract(job, static_cast<acc_t<T>*>(out), stream);
  });
}

void sample_index(const void* coords, int32_t* index, int dtype, int64_t batch, int64_t queries, const Layout& layout,
                  uintptr_t stream) {
  dispatch(dtype, [&](auto type) {
    using T = acc_t<typename decltype(type)::type>;
    const SampleDevice<T> job = make_job<T>(coords, batch, queries, 0, false, layout);
    const unsigned blocks = grid_for(batch * job.maps * queries, kSampleThreads);
    OCC_LAUNCH(index_kernel<T>, blocks, kSampleThreads, 0, stream, job, index);
  });
}

void sample_scatter(const void* coords, const void* grad, const void* directions, const void* frame,
                    const int32_t* /*index*/, const int32_t* order, const int32_t* offsets, void* planes, void* grid,
                    int dtype, int64_t batch, int64_t queries, int64_t channels, int num_directions, bool concat,
                    const Layout& layout, uintptr_t stream) {
  dispatch(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    SampleDevice<T> job = make_job<T>(coords, batch, queries, channels, concat, layout);
    set_directions(job, directions, frame, num_directions);
    job.grad = static_cast<const T*>(grad);
    scatter(job, order, offsets, static_cast<acc_t<T>*>(planes), static_cast<acc_t<T>*>(grid), stream);
  });
}

}  // namespace occ::cuda

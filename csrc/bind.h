// SPDX-License-Identifier: MIT
// entry(&function): the function as Python calls it. Pointers become integers (addresses), Layout and BinShape become
// tuples, the GIL is released while it runs.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <type_traits>

#include "math/bins.h"
#include "math/layout.h"

#define OCC_STRING_(x) #x
#define OCC_STRING(x) OCC_STRING_(x)
#if defined(__clang__)
#define OCC_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define OCC_COMPILER "gcc " __VERSION__
#elif defined(_MSC_VER)
#define OCC_COMPILER "msvc " OCC_STRING(_MSC_VER)
#else
#define OCC_COMPILER "unknown"
#endif

namespace pybind11::detail {

template <>
struct type_caster<occ::Layout> {
  PYBIND11_TYPE_CASTER(occ::Layout, const_name("tuple[int, int, int, int, bool, float]"));
  bool load(handle source, bool) {
    if (!isinstance<tuple>(source)) return false;
    const auto spec = reinterpret_borrow<tuple>(source);
    if (spec.size() != 6) return false;
    value = occ::make_layout(spec[0].cast<int>(), spec[1].cast<int>(), spec[2].cast<int>(), spec[3].cast<int>(),
                             spec[4].cast<bool>(), spec[5].cast<double>());
    return true;
  }
};

template <>
struct type_caster<occ::BinShape> {
  PYBIND11_TYPE_CASTER(occ::BinShape, const_name("tuple[int, int, int, tuple[int, ...], int, int, int]"));
  bool load(handle source, bool) {
    if (!isinstance<tuple>(source)) return false;
    const auto spec = reinterpret_borrow<tuple>(source);
    if (spec.size() != 7) return false;
    const auto cells = spec[3].cast<sequence>();
    if (cells.size() > occ::kMaxMaps) return false;
    value = occ::BinShape{};
    value.batch = spec[0].cast<int64_t>();
    value.count = spec[1].cast<int64_t>();
    value.channels = spec[2].cast<int64_t>();
    value.maps = static_cast<int>(cells.size());
    for (int k = 0; k < value.maps; ++k) value.cells[k] = cells[k].cast<int64_t>();
    value.first = spec[4].cast<int>();
    value.last = spec[5].cast<int>();
    value.target = spec[6].cast<int64_t>();
    return true;
  }
};

}  // namespace pybind11::detail

namespace occ {

template <class A>
using argument_t = std::conditional_t<std::is_pointer_v<A>, uintptr_t, std::remove_cvref_t<A>>;

template <class A>
decltype(auto) native_argument(argument_t<A>& value) {
  if constexpr (std::is_pointer_v<A>) {
    return reinterpret_cast<A>(value);
  } else {
    return static_cast<const argument_t<A>&>(value);
  }
}

template <class R, class... A>
auto entry(R (*function)(A...)) {
  return [function](argument_t<A>... arguments) -> R {
    pybind11::gil_scoped_release release;
    return function(native_argument<A>(arguments)...);
  };
}

}  // namespace occ

#pragma once

#include "tests/simt/runtime/simt.h"

namespace vitfast {

inline void copy_async(void* shared, const void* global, bool inside, simt::Site site = simt::Site::here()) {
  simt::copy_async(shared, global, inside, site);
}

inline void commit_copies() {
  simt::commit_copies();
}

template <int pending>
inline void wait_for_copies() {
  simt::wait_for_copies(pending);
}

}  // namespace vitfast

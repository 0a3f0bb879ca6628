#pragma once

#include "tests/simt/runtime/simt.h"

namespace vitfast {

inline void sync_threads(simt::Site site = simt::Site::here()) {
  simt::sync_threads(site);
}

inline void sync_named(int barrier, int threads, simt::Site site = simt::Site::here()) {
  simt::sync_named(barrier, threads, site);
}

}  // namespace vitfast

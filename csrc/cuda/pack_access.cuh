// Loads and stores of 16 bytes in global or shared memory; addresses are multiples of 16. Included by pack.cuh.

#pragma once

namespace vitfast {

template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* address) {
  return *reinterpret_cast<const Pack<T>*>(address);
}

template <typename T>
__device__ __forceinline__ void store_pack(T* address, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(address) = pack;
}

}  // namespace vitfast

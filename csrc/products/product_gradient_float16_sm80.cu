#include "csrc/products/product_gradient_sm80.cuh"

template void vitfast::launch_product_sm80<vitfast::Half>(const vitfast::ProductGradient&, vitfast::Stream);

#include "csrc/products/product_gradient_sm80.cuh"

template void vitfast::launch_product_sm80<vitfast::BFloat16>(const vitfast::ProductGradient&, vitfast::Stream);

#include "csrc/products/product_gradient_sm90a.cuh"

template void vitfast::launch_product_sm90a<vitfast::Half>(const vitfast::ProductGradient&, vitfast::Stream);

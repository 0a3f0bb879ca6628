#include "csrc/upsample_relations/upsample_relations_kernel.cuh"

namespace vitfast {

template void launch_upsample_relations<Half>(const UpsampleRelationsOnDevice&, Stream);
template void launch_upsample_relations<BFloat16>(const UpsampleRelationsOnDevice&, Stream);
template void launch_upsample_relations<float>(const UpsampleRelationsOnDevice&, Stream);

}  // namespace vitfast

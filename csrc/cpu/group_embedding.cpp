// group_embedding on the CPU, in the variant that this machine has.
#include "lpd/group_embedding.h"

#include <algorithm>

#define LPD_OP group_embedding
#define LPD_PARAMS GroupEmbeddingParams
#define LPD_BODY "group_embedding.inl"
#include "in_each_variant.inl"

// bias_gelu on the CPU, in the variant that this machine has.
#include "lpd/bias_gelu.h"

#include <algorithm>

#define LPD_OP bias_gelu
#define LPD_PARAMS BiasGeluParams
#define LPD_BODY "bias_gelu.inl"
#include "in_each_variant.inl"

// linear_gelu on the CPU, in the variant that this machine has.
#include "lpd/linear_gelu.h"

#include <algorithm>

#define LPD_OP linear_gelu
#define LPD_PARAMS LinearGeluParams
#define LPD_BODY "linear_gelu.inl"
#include "in_each_variant.inl"

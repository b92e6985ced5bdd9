// add_layer_norm on the CPU, in the variant that this machine has.
#include "lpd/add_layer_norm.h"

#define LPD_OP add_layer_norm
#define LPD_PARAMS AddLayerNormParams
#define LPD_BODY "add_layer_norm.inl"
#include "in_each_variant.inl"

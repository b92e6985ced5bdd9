// Functions compiled for more than the baseline: everything between LPD_TARGET_BEGIN(...) and
// LPD_TARGET_END. All includes come before, or inline functions of theirs would be compiled for
// these instructions too and could end up in code that every machine runs.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LPD_X86 1

#define LPD_PRAGMA(text) _Pragma(#text)
#define LPD_TARGET_BEGIN(features) LPD_PRAGMA(GCC push_options) LPD_PRAGMA(GCC target(features))
#define LPD_TARGET_END LPD_PRAGMA(GCC pop_options)

#define LPD_AVX2 "avx2,fma,f16c"
#define LPD_AVX512 LPD_AVX2 ",avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"
#define LPD_AMX LPD_AVX512 ",avx512bf16,amx-tile,amx-bf16"
#endif

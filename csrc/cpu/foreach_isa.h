// Compiles the file named by FASTCSM_FILE once per instruction set, each time inside namespace FASTCSM_ISA with vectors
// of FASTCSM_VECTOR_BYTES, then lets the includer go on to its launcher, the part under #if FASTCSM_LAUNCHER. Under
// FASTCSM_REDUCED float products round their operands to bfloat16 and accumulate in float; under FASTCSM_TILES they run
// on the processor's matrix tiles.
// Code between the pragmas must not instantiate templates of the standard library: the linker would be free to keep the
// copy compiled for the newer processor.
#define FASTCSM_LAUNCHER 0

#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu/amx.h"
#endif

#if defined(__clang__)
#define FASTCSM_TARGET_END _Pragma("clang attribute pop")
#else
#define FASTCSM_TARGET_END _Pragma("GCC pop_options")
#endif

#define FASTCSM_REDUCED 0
#define FASTCSM_TILES 0
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define FASTCSM_ISA avx512
#define FASTCSM_VECTOR_BYTES 64
#include FASTCSM_FILE
#undef FASTCSM_ISA
#undef FASTCSM_VECTOR_BYTES
FASTCSM_TARGET_END

#undef FASTCSM_REDUCED
#define FASTCSM_REDUCED 1
#undef FASTCSM_TILES
#if defined(__clang__)
#pragma clang attribute push(                                                                            \
    __attribute__((target("amx-bf16,amx-tile,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("amx-bf16,amx-tile,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define FASTCSM_ISA amx
#define FASTCSM_TILES 1
#define FASTCSM_VECTOR_BYTES 64
#include FASTCSM_FILE
#undef FASTCSM_ISA
#undef FASTCSM_TILES
#define FASTCSM_TILES 0
#undef FASTCSM_VECTOR_BYTES
FASTCSM_TARGET_END

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define FASTCSM_ISA avx512_bf16
#define FASTCSM_VECTOR_BYTES 64
#include FASTCSM_FILE
#undef FASTCSM_ISA
#undef FASTCSM_VECTOR_BYTES
FASTCSM_TARGET_END
#undef FASTCSM_REDUCED
#define FASTCSM_REDUCED 0

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define FASTCSM_ISA avx2
#define FASTCSM_VECTOR_BYTES 32
#include FASTCSM_FILE
#undef FASTCSM_ISA
#undef FASTCSM_VECTOR_BYTES
FASTCSM_TARGET_END
#endif

#define FASTCSM_ISA baseline
#define FASTCSM_VECTOR_BYTES 16
#include FASTCSM_FILE
#undef FASTCSM_ISA
#undef FASTCSM_VECTOR_BYTES

#undef FASTCSM_LAUNCHER
#define FASTCSM_LAUNCHER 1
#undef FASTCSM_TARGET_END

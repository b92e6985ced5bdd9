// mma.m16n8k16 and ldmatrix, by the layouts of fragments in the PTX manual: lane 4g + t holds, of
// each 8x8 part, the elements 2t and 2t + 1 of row g (of column g for the right operand).
#include <cstring>

#include "access.h"
#include "collective.h"
#include "shared_memory.h"
#include "simt/primitives.h"

namespace simt::device {

using namespace simt::runtime;

namespace {

float value_of(Half type, uint32_t bits) {
  const uint16_t low = static_cast<uint16_t>(bits);
  return type == Half::kBFloat16 ? bf16_float(low) : f16_float(low);
}

struct MmaArgument {
  float* d;
  const uint32_t *a, *b;
};

// Sums in float32, over k in order, the accumulator last: a GPU rounds differently.
void multiply(const Collective& c, Half type) {
  float a[16][16], b[16][8], sum[16][8] = {};
  for_each_lane<MmaArgument>(c, [&](unsigned lane, const MmaArgument& m) {
    const unsigned g = lane >> 2, t = lane & 3;
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned k = t * 2 + half, shift = half * 16;
      a[g][k] = value_of(type, m.a[0] >> shift);
      a[g + 8][k] = value_of(type, m.a[1] >> shift);
      a[g][k + 8] = value_of(type, m.a[2] >> shift);
      a[g + 8][k + 8] = value_of(type, m.a[3] >> shift);
      b[k][g] = value_of(type, m.b[0] >> shift);
      b[k + 8][g] = value_of(type, m.b[1] >> shift);
    }
  });
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 8; ++j) sum[i][j] += a[i][k] * b[k][j];
    }
  }
  for_each_lane<MmaArgument>(c, [&](unsigned lane, MmaArgument& m) {
    const unsigned g = lane >> 2, t = lane & 3;
    m.d[0] += sum[g][t * 2];
    m.d[1] += sum[g][t * 2 + 1];
    m.d[2] += sum[g + 8][t * 2];
    m.d[3] += sum[g + 8][t * 2 + 1];
  });
}

struct LoadArgument {
  uint32_t* registers;
  const void* row;
};

// Lanes 8m .. 8m + 7 name the rows of matrix m; its eight reads are one phase of the memory, free
// of conflicts if they fall into the eight different groups of four banks.
void load(const Collective& c, int count, bool transposed) {
  for (int m = 0; m < count; ++m) {
    uint16_t matrix[8][8];
    unsigned banks = 0;
    bool conflict = false;
    for (int row = 0; row < 8; ++row) {
      const void* address = static_cast<LoadArgument*>(c.argument[m * 8 + row])->row;
      std::memcpy(matrix[row], address, sizeof(matrix[row]));
      const unsigned bank = 1u << (reinterpret_cast<uintptr_t>(address) / 16 % 8);
      conflict |= (banks & bank) != 0;
      banks |= bank;
    }
    ++stats.ldmatrix_phases;
    stats.bank_conflicts += conflict;
    for_each_lane<LoadArgument>(c, [&](unsigned lane, LoadArgument& a) {
      const unsigned g = lane >> 2, t = lane & 3;
      const uint32_t low = transposed ? matrix[t * 2][g] : matrix[g][t * 2];
      const uint32_t high = transposed ? matrix[t * 2 + 1][g] : matrix[g][t * 2 + 1];
      a.registers[m] = low | high << 16;
    });
  }
}

}  // namespace

void mma(Half type, float* d, const uint32_t* a, const uint32_t* b, Site site) {
  const HooksOff off;
  MmaArgument mine{d, a, b};
  const char* what = type == Half::kBFloat16 ? "mma_bf16" : "mma_f16";
  if (Collective* c = join_full_warp(what, &mine, site)) {
    ++stats.mma;
    multiply(*c, type);
    finish(c);
  }
}

void load_matrices(int count, bool transposed, uint32_t* registers, const void* row, Site site) {
  const HooksOff off;
  if (current->lane < 8u * static_cast<unsigned>(count)) {  // further lanes name no row
    const uintptr_t address = reinterpret_cast<uintptr_t>(row);
    if (!shared_memory.holds(address)) {
      fail("ldmatrix: the row is not in shared memory, at " + text(site));
    }
    if (address % 16 != 0) {
      fail("ldmatrix: misaligned row, not at a multiple of 16: " + describe(address) + " at " +
           text(site));
    }
    check_access(address, 16, Kind::kRead, Place(site));
  }
  LoadArgument mine{registers, row};
  const char* what = transposed ? "ldmatrix.trans" : "ldmatrix";
  if (Collective* c = join_full_warp(what, &mine, site)) {
    load(*c, count, transposed);
    finish(c);
  }
}

}  // namespace simt::device
